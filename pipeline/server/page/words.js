// Numbers as people read them.

const STEPS = ["B", "kB", "MB", "GB", "TB"];

/** Three digits and a decimal unit, as the command line has it. */
export function bytes(count) {
  let step = 0;
  while (count >= 999.5 && step < STEPS.length - 1) {
    count /= 1000;
    step += 1;
  }
  return `${digits(count)} ${STEPS[step]}`;
}

export const rate = (perSecond) => `${bytes(perSecond)}/s`;

export const percent = (share) => `${Math.round(share * 100)}%`;

export const count = (number) => number.toLocaleString("en-US");

export function seconds(value) {
  if (value < 0.9995) return `${Math.round(value * 1000)} ms`;
  return value < 120 ? `${digits(value)} s` : `${Math.floor(value / 60)} min ${Math.round(value % 60)} s`;
}

/** Three digits, without decimals that say nothing. */
export function digits(value) {
  if (value === 0) return "0";
  const decimals = value >= 99.95 ? 0 : value >= 9.995 ? 1 : 2;
  return String(Number(value.toFixed(decimals)));
}

export function plural(number, noun) {
  return `${count(number)} ${noun}${number === 1 ? "" : "s"}`;
}
