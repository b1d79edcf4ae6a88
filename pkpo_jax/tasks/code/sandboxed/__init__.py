"""Programs that run inside the sandbox, started by `pkpo_jax.tasks.code.sandbox`.

Only the standard library and this directory are visible there. The programs import almost nothing,
since every answer waits for their imports: json or typing would double the time to start.
"""
