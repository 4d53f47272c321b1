#!/bin/bash
# llama-cpp-python 0.3.36: a Q4_0 model that is to be memory-mapped is copied into memory, all of it (on a CPU with AVX-512).
#
# With load_mode LLAMA_LOAD_MODE_MMAP the file is mapped, and then all matrices in Q4_0 are copied into a buffer
# CPU_REPACK, in an order that computes faster, since use_extra_bufts is true by default. So the memory that mapping is to
# save is taken, and cannot be given back to the page cache. With use_extra_bufts = False nothing is copied, and computing
# takes 1.5 times as long. Also: the field use_mmap of llama_model_params, which older versions have, is gone, and setting
# it raises nothing, as it becomes a Python attribute of a ctypes structure.
#
# Seen, for 57 MB of matrices in Q4_0 (AVX-512):
#   mapped, use_extra_bufts by default: 57 MB of memory of its own more
#   mapped, use_extra_bufts = False: 0 MB of memory of its own more
#   use_mmap = True: accepted; a field of the structure: False
# Way out: set use_extra_bufts = False for models that are to stay in the page cache.
#
# It comes as source: 3 to 20 minutes to build, with a C++ compiler and cmake. Exits non-zero when the behaviour is
# another one.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q "llama-cpp-python==0.3.36" "gguf==0.19.0"
cat > "$folder/mapped.py" <<'PROGRAM'
import ctypes, sys
import gguf, llama_cpp, numpy

hidden, ffn, layers, vocabulary = 1024, 4096, 6, 512
writer = gguf.GGUFWriter(sys.argv[1], "llama")
writer.add_context_length(128); writer.add_embedding_length(hidden); writer.add_block_count(layers)
writer.add_feed_forward_length(ffn); writer.add_head_count(8); writer.add_head_count_kv(8)
writer.add_layer_norm_rms_eps(1e-5); writer.add_vocab_size(vocabulary); writer.add_tokenizer_model("no_vocab")
generator, kind = numpy.random.default_rng(0), gguf.GGMLQuantizationType.Q4_0


def matrix(name, rows, columns):
    global quantised_bytes
    data = gguf.quantize(generator.standard_normal((rows, columns), numpy.float32), kind)
    quantised_bytes += data.nbytes
    writer.add_tensor(f"{name}.weight", data, raw_dtype=kind)


quantised_bytes = 0
for layer in range(layers):
    for name, rows, columns in (
        *((f"attn_{one}", hidden, hidden) for one in ("q", "k", "v", "output")),
        ("ffn_gate", ffn, hidden), ("ffn_up", ffn, hidden), ("ffn_down", hidden, ffn),
    ):
        matrix(f"blk.{layer}.{name}", rows, columns)
    for name in ("attn_norm", "ffn_norm"):
        writer.add_tensor(f"blk.{layer}.{name}.weight", numpy.ones(hidden, numpy.float32))
writer.add_tensor("token_embd.weight", generator.standard_normal((vocabulary, hidden), numpy.float32))
writer.add_tensor("output_norm.weight", numpy.ones(hidden, numpy.float32))
matrix("output", vocabulary, hidden)
writer.write_header_to_file(); writer.write_kv_data_to_file(); writer.write_tensors_to_file(); writer.close()


def own_bytes():
    status = dict(line.split(":", 1) for line in open("/proc/self/status"))
    return int(status["RssAnon"].split()[0]) * 1024


quiet = llama_cpp.llama_log_callback(lambda level, text, data: None)
llama_cpp.llama_log_set(quiet, ctypes.c_void_p(0))
llama_cpp.llama_backend_init()
taken = {}
for extra in (None, False):
    parameters = llama_cpp.llama_model_default_params()
    parameters.load_mode, parameters.n_gpu_layers = llama_cpp.LLAMA_LOAD_MODE_MMAP, 0
    if extra is not None:
        parameters.use_extra_bufts = extra
    before = own_bytes()
    model = llama_cpp.llama_model_load_from_file(sys.argv[1].encode(), parameters)
    assert model, "llama.cpp cannot open it"
    taken[extra] = own_bytes() - before
    llama_cpp.llama_model_free(model)
print(f"{quantised_bytes / 1e6:.0f} MB of matrices in Q4_0")
print(f"mapped, use_extra_bufts by default: {taken[None] / 1e6:.0f} MB of memory of its own more")
print(f"mapped, use_extra_bufts = False: {taken[False] / 1e6:.0f} MB of memory of its own more")
parameters.use_mmap = True
is_field = "use_mmap" in dict(parameters._fields_)
print(f"use_mmap = True: accepted; a field of the structure: {is_field}")
sys.exit(not (taken[None] > 0.9 * quantised_bytes and taken[False] < 0.1 * quantised_bytes and not is_field))
PROGRAM
"$folder/venv/bin/python" "$folder/mapped.py" "$folder/model.gguf"
