/*
 * For LD_PRELOAD: the kernel of this process knows no VXLAN. Every netlink message that asks for a link of the kind
 * "vxlan" asks for one of the kind "vxlax" instead, and the kernel itself answers as one without the module does.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <string.h>
#include <sys/socket.h>

ssize_t sendto(int fd, const void *bytes, size_t length, int flags, const struct sockaddr *to, socklen_t to_length) {
  static ssize_t (*next)(int, const void *, size_t, int, const struct sockaddr *, socklen_t);
  if (next == NULL) next = (__typeof__(next))dlsym(RTLD_NEXT, "sendto");
  if (to != NULL && to->sa_family == AF_NETLINK) {
    char *at = (char *)bytes;
    while ((at = memmem(at, length - (size_t)(at - (char *)bytes), "vxlan\0", 6)) != NULL) at[4] = 'x';
  }
  return next(fd, bytes, length, flags, to, to_length);
}
