"""The whole house under load, broken at random: ``python -m tests.faults.soak``, ``make soak``."""
