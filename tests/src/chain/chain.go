// As chain.c, in Go: one goroutine computes at the end of a chain of calls, and others, each with a
// thread of its own, pass on a mutex that they hold while they sleep.
package main

import (
	"bufio"
	"fmt"
	"os"
	"runtime"
	"sync"
	"time"
)

var sink uint64

//go:noinline
func compute() {
	x := sink | 1
	for i := 0; i < 600000; i++ {
		x = x*6364136223846793005 + 1442695040888963407
	}
	sink = x
}

//go:noinline
func leaf(depth int) {
	var room [200]byte
	for i := range room {
		room[i] = byte(depth)
	}
	compute()
	sink += uint64(room[depth])
}

//go:noinline
func inner(depth int) {
	leaf(depth + 1)
	sink++
}

//go:noinline
func middle(depth int) {
	inner(depth + 1)
	sink++
}

//go:noinline
func outer(depth int) {
	middle(depth + 1)
	sink++
}

//go:noinline
func passOn(lock *sync.Mutex) {
	lock.Lock()
	time.Sleep(2 * time.Millisecond)
	lock.Unlock()
}

func main() {
	fmt.Printf("READY %d\n", os.Getpid())
	bufio.NewReader(os.Stdin).ReadString('\n')
	var lock sync.Mutex
	for i := 0; i < 4; i++ {
		go func() {
			runtime.LockOSThread()
			for {
				passOn(&lock)
			}
		}()
	}
	for {
		outer(16)
	}
}
