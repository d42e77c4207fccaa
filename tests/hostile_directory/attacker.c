// Copyright: (c) 2026, The airlock.images authors
// GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
// SPDX-License-Identifier: GPL-3.0-or-later

// A tenant who exchanges what is in his directories, as fast as he can or at the moment that inotify tells him.
//
// It reads commands from standard input, one a line:
//   D PATH          opens a directory, the next by number; from now on it is that one, whatever it is called
//   W NUMBER        watches a directory
//   E I NAME J NAME exchanges the two names, again and again
//   M I NAME J NAME moves the first name to the second, which is not there, and back
//   G SEED SHORTEST LONGEST FIRST
//                   answers "ready" and attacks until another line comes; nanoseconds between two exchanges. FIRST: the
//                   event to wait for, 0: not for any
//   S               ends the attack, answers "EXCHANGES EVENTS", and forgets all of the above

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/inotify.h>
#include <time.h>
#include <unistd.h>

enum {
    DIRECTORIES_MAX = 16,
    PAIRS_MAX = 16,
    NAME_MAX_ = 64,
    LINE_MAX_ = 4096
};

#define EVENTS (IN_OPEN | IN_ACCESS | IN_MODIFY | IN_CLOSE_WRITE | IN_CLOSE_NOWRITE | IN_CREATE | IN_DELETE | IN_ATTRIB)

struct pair {
    int from, to;
    char name[NAME_MAX_], other[NAME_MAX_];
    unsigned flags;
};

static int directories[DIRECTORIES_MAX], directory_count;
static struct pair pairs[PAIRS_MAX];
static int pair_count;
static int watcher = -1;
static unsigned long long exchanges, events, state;

static unsigned long long draw(void) { // xorshift64*
    state ^= state >> 12;
    state ^= state << 25;
    state ^= state >> 27;
    return state * 2685821657736338717ULL;
}

static unsigned long long now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * 1000000000ULL + time.tv_nsec;
}

static int is_told_to_stop(void) {
    struct pollfd input = {.fd = 0, .events = POLLIN};
    return poll(&input, 1, 0) != 0;
}

// Between the two; each order of magnitude as often as the others.
static void wait_a_while(unsigned long long shortest, unsigned long long longest) {
    unsigned long long length = shortest;
    while (length * 2 <= longest && draw() % 8)
        length *= 2;
    length += length ? draw() % length : 0;
    if (length > 200000) {
        struct timespec pause = {.tv_nsec = (long)(length % 1000000000)};
        nanosleep(&pause, NULL);
        return;
    }
    for (unsigned long long start = now(); now() - start < length;)
        ;
}

static void exchange(struct pair *pair) {
    if (!renameat2(directories[pair->from], pair->name, directories[pair->to], pair->other, pair->flags)) {
        exchanges++;
    } else if (pair->flags == RENAME_NOREPLACE &&
               !renameat2(directories[pair->to], pair->other, directories[pair->from], pair->name, pair->flags)) {
        exchanges++;
    }
}

// The events that are there, at most after a while.
static void count_events(int milliseconds) {
    char buffer[LINE_MAX_] __attribute__((aligned(8)));
    struct pollfd sources[] = {{.fd = watcher, .events = POLLIN}, {.fd = 0, .events = POLLIN}};
    if (poll(sources, 2, milliseconds) <= 0 || !(sources[0].revents & POLLIN))
        return;
    ssize_t length = read(watcher, buffer, sizeof buffer);
    for (char *at = buffer; at < buffer + length; events++)
        at += sizeof(struct inotify_event) + ((struct inotify_event *)at)->len;
}

static void attack(unsigned long long shortest, unsigned long long longest, unsigned long long first) {
    unsigned long long wanted = first;
    while (!is_told_to_stop() && pair_count) {
        if (first && events < wanted) {
            count_events(50);
            continue;
        }
        exchange(&pairs[draw() % pair_count]);
        wait_a_while(shortest, longest);
        if (first && draw() % 4 == 0) { // most of the time it stays as it is for a while, and may go back later
            count_events(0);
            wanted = events + 1 + draw() % 16;
        }
    }
}

static void forget(void) {
    while (directory_count)
        close(directories[--directory_count]);
    pair_count = 0;
    close(watcher);
    watcher = inotify_init1(IN_CLOEXEC);
    exchanges = events = 0;
}

static void fail(const char *line) {
    fprintf(stderr, "attacker: %s: %s", strerror(errno), line);
    exit(1);
}

static void add_pair(const char *line) {
    struct pair *pair = &pairs[pair_count++];
    pair->flags = line[0] == 'E' ? RENAME_EXCHANGE : RENAME_NOREPLACE;
    if (pair_count > PAIRS_MAX ||
        sscanf(line + 1, "%d %63s %d %63s", &pair->from, pair->name, &pair->to, pair->other) != 4)
        fail(line);
}

int main(void) {
    static char line[LINE_MAX_];
    setvbuf(stdin, NULL, _IONBF, 0); // what is not read yet is to be seen by poll()
    watcher = inotify_init1(IN_CLOEXEC);
    while (fgets(line, sizeof line, stdin)) {
        char path[64];
        int number;
        unsigned long long shortest, longest, first;
        if (line[0] == 'D') {
            line[strcspn(line, "\n")] = 0;
            int directory = open(line + 2, O_PATH | O_DIRECTORY | O_CLOEXEC);
            if (directory < 0 || directory_count == DIRECTORIES_MAX)
                fail(line);
            directories[directory_count++] = directory;
        } else if (line[0] == 'W') {
            number = atoi(line + 2);
            snprintf(path, sizeof path, "/proc/self/fd/%d", directories[number]);
            if (number >= directory_count || inotify_add_watch(watcher, path, EVENTS) < 0)
                fail(line);
        } else if (line[0] == 'E' || line[0] == 'M') {
            add_pair(line);
        } else if (line[0] == 'G') {
            if (sscanf(line + 1, "%llu %llu %llu %llu", &state, &shortest, &longest, &first) != 4)
                fail(line);
            printf("ready\n");
            fflush(stdout);
            attack(shortest, longest, first);
        } else {
            printf("%llu %llu\n", exchanges, events);
            fflush(stdout);
            forget();
        }
    }
    return 0;
}
