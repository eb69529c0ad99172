"""Locks, so that one instance at a time loads."""

from blacksmith_dagster.supervisor.interface import Lease, LockStatus, Supervisor

__all__ = ["Lease", "LockStatus", "Supervisor"]
