// tls_client PORT TIMES: asks a server for /small over crypto/tls, on a connection of its own each time, and
// reads all that it sends.
package main

import (
	"crypto/tls"
	"fmt"
	"io"
	"log"
	"os"
	"strconv"
)

func main() {
	times, err := strconv.Atoi(os.Args[2])
	for ; err == nil && times > 0; times-- {
		err = ask("localhost:" + os.Args[1])
	}
	if err != nil {
		log.Fatal(err)
	}
}

func ask(address string) error {
	connection, err := tls.Dial("tcp", address, &tls.Config{InsecureSkipVerify: true})
	if err != nil {
		return err
	}
	defer connection.Close()
	fmt.Fprint(connection, "GET /small HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
	_, err = io.Copy(io.Discard, connection)
	return err
}
