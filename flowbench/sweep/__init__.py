"""Studies through Optuna: any number of workers run what is missing, and continue after any kill.

The life of a trial:

1. *Planned.* A study plans its trials (``planned``): the points of a grid, or as many as were asked
   for. The command (``parent``) queues an attempt at every planned trial that lacks one.
2. *Claimed.* A worker (``worker``), a process of its own, takes the first waiting attempt under the
   storage's lock, so each is run once however many workers and machines there are. It records its
   process and renews a time stamp every 20 seconds (``heartbeat``).
3. *Given values.* Those that it was queued with, else the sampler's (``samplers``).
4. *Run* by ``flowbench.experiment.run`` (``trial``). Its run in MLflow names the trial. If an
   earlier attempt left a finished run, that is used; if it left a checkpoint, that run continues.
5. *Reported.* The run is closed, then Optuna gets the state, then the run's tag: COMPLETE with the
   value of every objective; PRUNED; or FAIL with the error. If a kill falls between two of these
   steps, the next process that looks repairs it.
6. *Queued again* if its process died or was stopped, by the next process that claims a trial. A
   third death of the same planned trial counts as a failure; a stop does not count.

The command starts the workers (``pool``), shows what changes (``display``), restarts dead workers,
and ends when every planned trial has ended or too many have failed. However it ends, it records the
trials and the importance of each parameter with the study's run (``record``).
"""
