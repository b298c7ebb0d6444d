"""Kernels for AWS Trainium in NKI, and a simulator to check and time them without one."""
