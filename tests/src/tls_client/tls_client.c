/* tls_client PORT REQUESTS: asks for /small of an HTTP/1.1 server in TLS, once before it prints
 * READY and waits for a line (where standard input is closed, not at all), and REQUESTS times after
 * that; half of them by the functions of OpenSSL that have _ex in their name. Linked with libssl.a. */
#include <arpa/inet.h>
#include <openssl/ssl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const char REQUEST[] = "GET /small HTTP/1.1\r\nHost: localhost\r\n\r\n";
/* What a servers::Nginx has there. */
enum { BODY = 200 };

static void fail(const char *what) {
    fprintf(stderr, "%s\n", what);
    exit(1);
}

static void send_request(SSL *ssl, int ex) {
    int length = sizeof REQUEST - 1;
    size_t sent = 0;
    if (ex ? SSL_write_ex(ssl, REQUEST, length, &sent) != 1 : SSL_write(ssl, REQUEST, length) != length)
        fail("SSL_write");
}

static void read_answer(SSL *ssl, int ex) {
    char text[4096];
    size_t length = 0, got = 0;
    for (;;) {
        int room = sizeof text - 1 - length;
        int n = ex ? SSL_read_ex(ssl, text + length, room, &got) : SSL_read(ssl, text + length, room);
        if (n <= 0)
            fail("SSL_read");
        length += ex ? got : (size_t)n;
        text[length] = 0;
        char *body = strstr(text, "\r\n\r\n");
        if (body && text + length == body + 4 + BODY)
            return;
    }
}

int main(int count, char **words) {
    if (count != 3)
        fail("usage: tls_client PORT REQUESTS");
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(atoi(words[1]))};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    if (connect(fd, (struct sockaddr *)&address, sizeof address) != 0)
        fail("connect");
    SSL *ssl = SSL_new(SSL_CTX_new(TLS_client_method()));
    if (!ssl || SSL_set_fd(ssl, fd) != 1 || SSL_connect(ssl) != 1)
        fail("SSL_connect");
    send_request(ssl, 0);
    read_answer(ssl, 0);
    printf("READY %d\n", getpid());
    fflush(stdout);
    getchar();
    for (int i = 0; i < atoi(words[2]); i++) {
        send_request(ssl, i % 2);
        read_answer(ssl, i % 2);
    }
    printf("DONE {}\n");
    SSL_shutdown(ssl);
    SSL_free(ssl);
    close(fd);
    return 0;
}
