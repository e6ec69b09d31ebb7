"""What the engines' own environments run is no module to collect from."""

collect_ignore = [
    "cpu_torchvision.py",
    "probe",
    "sglang_run.py",
    "stubs",
    "tiny_checkpoint.py",
    "vllm_run.py",
]
