"""Policies, remembered trainings, and which policy a deployment has in force."""
