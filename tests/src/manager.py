"""As systemd does it: holds the listening sockets of a service and hears what the service says.

usage: manager.py RUN-DIRECTORY PORT LOG COMMAND...    commands on stdin, one answer line each:
start -> what the service says first; stop -> what it says next and its exit code."""

import os, signal, socket, sys

run, port, log, command = sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4:]
held = []
if port:
    tcp = socket.create_server(("127.0.0.1", port), backlog=64)
    held.append(tcp)
inject = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
path = run + "/inject.sock"
if os.path.exists(path):
    os.unlink(path)
inject.bind(path)
inject.listen(64)
os.chmod(path, 0o666)
held.append(inject)
# An abstract address, which systemd uses where it can.
told = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
told.bind("")
told.settimeout(60)
notify = "@" + told.getsockname()[1:].decode()
child = 0


def hear():
    try:
        return told.recv(1000).decode()
    except TimeoutError:
        return "silence"


for line in sys.stdin:
    if line == "start\n":
        child = os.fork()
        if child == 0:
            for number, fd in enumerate([os.dup(fd) for fd in [os.dup2(s.fileno(), 60 + i) for i, s in enumerate(held)]]):
                os.dup2(fd, 3 + number, inheritable=True)
            os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS=str(len(held)), NOTIFY_SOCKET=notify)
            null, out = os.open("/dev/null", os.O_RDWR), os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
            os.dup2(null, 0), os.dup2(null, 1), os.dup2(out, 2)
            os.execv(command[0], command)
        print(hear(), flush=True)
    else:
        os.kill(child, signal.SIGTERM)
        said = hear()
        print(said, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
if child:
    try:
        os.kill(child, signal.SIGTERM)
        os.waitpid(child, 0)
    except (ProcessLookupError, ChildProcessError):
        pass
