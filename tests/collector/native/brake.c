/* brake FILE COMMAND...: runs COMMAND with a disk that does as FILE says, whatever it is written in.
 *
 * Each fsync and fdatasync of COMMAND is held by the kernel (seccomp user notification) until FILE has been read anew:
 *
 *     DELAY_MS ERRNO KILL_AT
 *
 * The call takes DELAY_MS longer, fails with ERRNO if that is not 0, and the KILL_AT-th call since FILE last changed is not
 * made: the process is killed in its stead (0: never). COMMAND keeps this process's id; a child of it looks after the calls.
 */
#define _GNU_SOURCE
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <poll.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static void die(const char *what) {
  perror(what);
  exit(127);
}

static int install(void) {
  struct sock_filter filter[] = {
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_fsync, 1, 0),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_fdatasync, 0, 1),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_USER_NOTIF),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
  };
  struct sock_fprog program = {.len = sizeof filter / sizeof *filter, .filter = filter};
  if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)) die("no_new_privs");
  /* Killable: else the signals by which Go's runtime preempts would have each held call begin again. */
  unsigned flags = SECCOMP_FILTER_FLAG_NEW_LISTENER | SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV;
  int listener = (int)syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, flags, &program);
  if (listener < 0) die("seccomp");
  return listener;
}

union control {
  struct cmsghdr header;
  char room[CMSG_SPACE(sizeof(int))];
};

static void pass(int channel, int fd) {
  char byte = 0;
  struct iovec data = {&byte, 1};
  union control control = {0};
  struct msghdr message = {.msg_iov = &data, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control};
  struct cmsghdr *header = CMSG_FIRSTHDR(&message);
  header->cmsg_level = SOL_SOCKET;
  header->cmsg_type = SCM_RIGHTS;
  header->cmsg_len = CMSG_LEN(sizeof fd);
  memcpy(CMSG_DATA(header), &fd, sizeof fd);
  if (sendmsg(channel, &message, 0) != 1) die("sendmsg");
}

static int receive(int channel) {
  char byte;
  int fd;
  struct iovec data = {&byte, 1};
  union control control = {0};
  struct msghdr message = {.msg_iov = &data, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control};
  if (recvmsg(channel, &message, 0) != 1) exit(0);
  memcpy(&fd, CMSG_DATA(CMSG_FIRSTHDR(&message)), sizeof fd);
  return fd;
}

static void look_after(int listener, const char *file) {
  char rule[64] = "", now[64];
  long calls = 0;
  for (;;) {
    struct seccomp_notif call;
    memset(&call, 0, sizeof call);
    struct pollfd ready = {.fd = listener, .events = POLLIN};
    if (poll(&ready, 1, -1) < 0) continue;
    if (ready.revents & POLLHUP) exit(0); /* the process has ended */
    if (ioctl(listener, SECCOMP_IOCTL_NOTIF_RECV, &call)) continue; /* its caller was killed meanwhile */
    memset(now, 0, sizeof now);
    FILE *said = fopen(file, "r");
    if (said) {
      if (!fgets(now, sizeof now, said)) *now = 0;
      fclose(said);
    }
    if (strcmp(rule, now)) calls = 0, strcpy(rule, now);
    long delay_ms = 0, number = 0, kill_at = 0;
    sscanf(rule, "%ld %ld %ld", &delay_ms, &number, &kill_at);
    if (++calls == kill_at) kill((pid_t)call.pid, SIGKILL);
    struct timespec delay = {delay_ms / 1000, delay_ms % 1000 * 1000000};
    nanosleep(&delay, NULL);
    struct seccomp_notif_resp answer = {.id = call.id, .error = (int)-number};
    if (!number) answer.flags = SECCOMP_USER_NOTIF_FLAG_CONTINUE;
    ioctl(listener, SECCOMP_IOCTL_NOTIF_SEND, &answer); /* fails if the caller is gone: nothing to do */
  }
}

int main(int count, char **words) {
  int pair[2];
  if (count < 3) {
    fprintf(stderr, "usage: brake FILE COMMAND...\n");
    return 2;
  }
  if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair)) die("socketpair");
  pid_t child = fork();
  if (child < 0) die("fork");
  if (child == 0) {
    close(pair[0]);
    look_after(receive(pair[1]), words[1]);
  }
  close(pair[1]);
  int listener = install();
  pass(pair[0], listener);
  close(listener);
  execvp(words[2], words + 2);
  die(words[2]);
}
