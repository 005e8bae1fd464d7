"""Simulators with a known truth."""
