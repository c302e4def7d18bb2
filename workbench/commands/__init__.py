"""What the `workbench` command does: one module a group of commands, each with `run(arguments) -> exit code`."""
