/* lookup NAME: the IPv4 and IPv6 addresses the C library's resolver finds, one a line. Built with musl by the scenario. */

#include <arpa/inet.h>
#include <netdb.h>
#include <stdio.h>
#include <sys/socket.h>

int main(int count, char **words) {
  struct addrinfo hints = {.ai_socktype = SOCK_STREAM}, *found;
  if (count != 2) return 2;
  int error = getaddrinfo(words[1], NULL, &hints, &found);
  if (error != 0) {
    fprintf(stderr, "%s: %s\n", words[1], gai_strerror(error));
    return 1;
  }
  for (; found != NULL; found = found->ai_next) {
    char text[INET6_ADDRSTRLEN];
    const void *address = found->ai_family == AF_INET
                              ? (const void *)&((struct sockaddr_in *)found->ai_addr)->sin_addr
                              : (const void *)&((struct sockaddr_in6 *)found->ai_addr)->sin6_addr;
    puts(inet_ntop(found->ai_family, address, text, sizeof text));
  }
  return 0;
}
