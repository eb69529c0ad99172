"""The command that makes keys."""

from __future__ import annotations

import secrets

import click

from blacksmith_dagster.pipeline.access import hashed


@click.group()
def keys() -> None:
    """The keys that senders show."""


@keys.command("new")
def new_key() -> None:
    """Make a key for a sender, with the hash that stands for it here.

    Give the key to the sender, and the hash to the gateway as the environment variable that the
    source's Secret names. The key is kept nowhere.
    """
    key = secrets.token_urlsafe(32)
    click.echo(f"key   {key}\nhash  {hashed(key)}")
