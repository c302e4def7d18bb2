"""The Action pipeline: plan, confirm, apply, watch, abort or undo, audit. Everything that acts on a cluster goes through here."""
