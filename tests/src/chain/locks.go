// Locks in a Go program, of three kinds, one a run: `futex` (a mutex of its own on the futex system call, the
// thread waits), `runtime` (the runtime's own, of which the program sees nothing), `mutex` (a sync.Mutex,
// for which goroutines wait and no thread).
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
	"runtime"
	"runtime/debug"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"
)

const threads = 4
const holds = 100
const heldFor = 2 * time.Millisecond

// The mutex of "Futexes Are Tricky" (Drepper): free, taken, taken and waited for.
var word uint32

// By the program's own clock, in the futex calls that returned after a wake-up.
var waits, waitedNs int64

func futex(operation, value uintptr) syscall.Errno {
	address := uintptr(unsafe.Pointer(&word))
	// Raw: the scheduler is not told, so that nothing but the call itself is in its time.
	_, _, errno := syscall.RawSyscall6(syscall.SYS_FUTEX, address, operation, value, 0, 0, 0)
	return errno
}

//go:noinline
func takeLedger() {
	if atomic.CompareAndSwapUint32(&word, 0, 1) {
		return
	}
	for atomic.SwapUint32(&word, 2) != 0 {
		before := time.Now()
		const waitPrivate = 128
		if futex(waitPrivate, 2) == 0 {
			atomic.AddInt64(&waits, 1)
			atomic.AddInt64(&waitedNs, int64(time.Since(before)))
		}
	}
}

//go:noinline
func giveLedger() {
	if atomic.SwapUint32(&word, 0) == 2 {
		const wakePrivate = 129
		futex(wakePrivate, 1)
	}
}

//go:noinline
func postEntry() {
	length := syscall.NsecToTimespec(int64(heldFor))
	syscall.RawSyscall(syscall.SYS_NANOSLEEP, uintptr(unsafe.Pointer(&length)), 0, 0)
}

func passOnFutex() {
	// Neither may the collector wait for a thread that does not listen.
	debug.SetGCPercent(-1)
	runtime.GOMAXPROCS(2 * threads)
	var ended sync.WaitGroup
	for i := 0; i < threads; i++ {
		ended.Add(1)
		go func() {
			runtime.LockOSThread()
			for i := 0; i < holds; i++ {
				takeLedger()
				postEntry()
				giveLedger()
			}
			ended.Done()
		}()
	}
	ended.Wait()
}

// The scheduler's lock is taken at each change of goroutine, the heap's for each span.
func contendRuntime() {
	var ended sync.WaitGroup
	until := time.Now().Add(2 * time.Second)
	for i := 0; i < 2*threads; i++ {
		ended.Add(1)
		go func() {
			for time.Now().Before(until) {
				kept := make([]byte, 100_000)
				runtime.Gosched()
				runtime.KeepAlive(kept)
			}
			ended.Done()
		}()
	}
	ended.Wait()
}

var ledger sync.Mutex

func passOnMutex() {
	var ended sync.WaitGroup
	for i := 0; i < threads; i++ {
		ended.Add(1)
		go func() {
			for i := 0; i < holds; i++ {
				before := time.Now()
				ledger.Lock()
				atomic.AddInt64(&waitedNs, int64(time.Since(before)))
				time.Sleep(heldFor)
				ledger.Unlock()
			}
			ended.Done()
		}()
	}
	ended.Wait()
}

func main() {
	kinds := map[string]func(){"futex": passOnFutex, "runtime": contendRuntime, "mutex": passOnMutex}
	work := kinds[strings.Join(os.Args[1:], " ")]
	fmt.Printf("READY %d\n", os.Getpid())
	stdin := bufio.NewReader(os.Stdin)
	stdin.ReadString('\n')
	work()
	done, _ := json.Marshal(map[string]any{
		"address":   fmt.Sprintf("%#x", uintptr(unsafe.Pointer(&word))),
		"waits":     waits,
		"waited_ns": waitedNs,
	})
	fmt.Printf("DONE %s\n", done)
	stdin.ReadString('\n')
}
