/*
 * relay NEAR FAR: listen at NEAR, connect to FAR, and carry bytes both ways until one end closes.
 *
 * It reads and writes and does nothing else: what any proxy in user space costs on this machine.
 */
#include "peers.h"

int main(int argc, char **argv) {
    static char buffer[1 << 16];
    if (argc != 3) DIE("usage: relay NEAR FAR");
    int listener = listenAt(argv[1]), fd[2];
    fd[1] = connectTo(argv[2]);
    await(listener, POLLIN);
    fd[0] = accept(listener, 0, 0);
    fcntl(fd[1], F_SETFL, 0);
    for (struct pollfd p[] = {{fd[0], POLLIN, 0}, {fd[1], POLLIN, 0}}; poll(p, 2, -1) > 0;)
        for (int side = 0; side < 2; side++)
            if (p[side].revents) {
                ssize_t n = read(fd[side], buffer, sizeof buffer);
                if (n <= 0) return 0;
                put(fd[!side], buffer, n);
            }
}
