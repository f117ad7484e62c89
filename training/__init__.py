"""Everything that makes or judges a checkpoint; nothing here is needed to use one."""
