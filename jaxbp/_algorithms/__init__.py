"""Algebraically equal ways to evaluate a sum, one to a file: how each runs. No gradients, no checks, no choices."""
