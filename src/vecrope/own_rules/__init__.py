"""The families whose rule is not the shared one."""
