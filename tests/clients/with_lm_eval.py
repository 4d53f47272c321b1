"""lm-eval's local-completions against the server: log-likelihoods are those of transformers. Run by run.py.

What transformers says was written to PENSTOCK_REFERENCE before, in the environment of the project.
"""

import glob
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from checks import MODEL, URL, equal, run, true

REFERENCE = os.environ.get("PENSTOCK_REFERENCE", "")
WORST = 1e-4
"""Of a mean log-likelihood of a token."""


def evaluate(task):
    """The samples of a task, as lm-eval logs them."""
    with tempfile.TemporaryDirectory() as folder:
        tasks = Path(folder) / "tasks"
        tasks.mkdir()
        for path in (Path(__file__).parent / "lm_eval_task").glob("*.yaml"):
            text = path.read_text().replace("LINES_FILE", os.environ["PENSTOCK_LINES"])
            (tasks / path.name).write_text(text)
        where = f"base_url={URL}/v1/completions,model={MODEL},num_concurrent=4,max_length=1024"
        command = [sys.executable, "-m", "lm_eval", "run", "--model", "local-completions", "--model_args", where]
        command += ["--include_path", str(tasks), "--tasks", task, "--log_samples", "--output_path", f"{folder}/out"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise AssertionError(done.stderr[-2000:])
        [path] = glob.glob(f"{folder}/out/**/samples_*.jsonl", recursive=True)
        return [json.loads(line) for line in Path(path).read_text().splitlines()]


def reference(name):
    """What transformers says of each document, in order."""
    return json.loads(Path(REFERENCE).read_text())[name]


def check_log_likelihoods_of_choices_are_those_of_transformers():
    want = reference("choices")
    samples = sorted(evaluate("penstock_lines"), key=lambda sample: sample["doc_id"])
    equal(len(samples), len(want))
    worst = 0.0
    for sample, sums in zip(samples, want, strict=True):
        for [[value, is_greedy]], one in zip(sample["resps"], sums, strict=True):
            worst = max(worst, abs(float(value) - one["sum"]) / one["tokens"])
            equal(str(is_greedy), str(one["greedy"]))
    true(worst <= WORST, f"mean log-likelihoods differ by {worst:.2e}")
    print(f"       largest difference of a mean log-likelihood of a token: {worst:.2e}, of {WORST:g} allowed")


def check_rolling_log_likelihoods_are_those_of_transformers():
    want = reference("rolling")
    samples = sorted(evaluate("penstock_rolling"), key=lambda sample: sample["doc_id"])
    for sample, one in zip(samples, want, strict=True):
        [[value]] = sample["resps"]
        difference = abs(float(value[0] if isinstance(value, list) else value) - one["sum"]) / one["tokens"]
        true(difference <= WORST, f"mean log-likelihoods differ by {difference:.2e}")


def check_texts_generated_until_a_stop_are_those_of_transformers():
    samples = sorted(evaluate("penstock_until"), key=lambda sample: sample["doc_id"])
    equal([sample["resps"][0][0] for sample in samples], reference("until"))


if __name__ == "__main__":
    run(globals())
