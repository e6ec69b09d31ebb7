"""What stands for packages of the engines is no module to collect from."""

collect_ignore = ["cpu_torchvision.py", "stubs"]
