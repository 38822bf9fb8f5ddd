"""Workloads with random weights, and a naive decoder to measure against."""
