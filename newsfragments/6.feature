A planned restart (``systemctl restart``, ``ccproxyctl restart``, SIGTERM under ``--keep-descriptors``) closes no connection and loses no byte: the next process takes everything up, and answers what was under way. ``ccproxyctl supervise`` does for machines without systemd what systemd's descriptor store does.
A daemon that dies costs no container its life: VMs, sessions, tokens and the shims' connections go on with the next one, no stream is out of step, and what was lost of a session is said.
``cc-proxy -uri`` can let the daemon of the host serve its pod (``join``, ``CC_PROXY_JOIN=1``), which takes no process of its own then, and survives restarts.
What crashes have cost is also in the metrics, in all and for each session, and in ``ccproxyctl sessions``. A restart that is asked for is refused where the next daemon could not start with its configuration.
What a guest's console has said last is still there after a planned restart, for 2000 VMs the last 4 KiB of each.
A supervisor that is told to restart or to reload a daemon which is only starting tells it when it serves, instead of ending it; told to end during a restart, it ends in order. A pod that wants to join waits 3 s in all for the daemon, and is not taken any more after that.
A daemon with an embedded VM can be restarted, and takes a socket that systemd has made: what it imported for that VM had hidden all that was passed to it.
A state that contradicts itself (a command for another VM, a number that none can be) is refused as a whole, before anything is made of it.
