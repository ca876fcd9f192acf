"""Studies through Optuna: what is missing is run, by any number of workers, whatever happens.

The life of a trial:

1. *Planned.* A study plans its trials as numbered places (``places``): the points of a grid, or as
   many as were asked for. The command (``parent``) queues an attempt at every place that lacks one.
2. *Claimed.* A worker (``worker``), a process of its own, takes the first that waits, under the
   storage's lock: so each is run once, however many workers and machines there are. It writes down
   who it is and, every 20 seconds, that it lives (``heartbeat``).
3. *Given values.* Those that it was queued with, else the sampler's (``samplers``).
4. *Run* by ``flowbench.experiment.run``, as anything is (``trial``). Its run in the store names the
   trial. Where an earlier attempt has left a finished run, that is taken; where it has left a
   checkpoint, that run goes on.
5. *Told.* The run is closed, then Optuna is told, then the run's tag says what Optuna knows:
   COMPLETE with the value of every objective; PRUNED; or FAIL with the error. Whatever is killed
   between two of these steps is put right by the next that looks.
6. *Queued again* if its process died or was stopped: whoever claims next sees to that first. A
   third death at the same place counts as a failure; a stop does not count.

The command starts the workers (``pool``), shows what changes (``display``), starts dead workers
again, and ends when every place is over or too many have failed. However it ends, it leaves what
became of the trials, and which parameters matter, with the study's run (``record``).
"""
