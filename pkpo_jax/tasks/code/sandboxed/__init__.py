"""Programs that run inside the sandbox; `pkpo_jax.tasks.code.sandbox` starts them.

There is nothing but the standard library there, and what is in this directory. And they import
next to nothing, for each answer waits for it: json or typing would double the time that it takes.
"""
