//! As `chain.c`, in Rust with `panic=abort`.
use std::hint::black_box;
use std::io::Write as _;
use std::time::Duration;

#[unsafe(no_mangle)]
#[inline(never)]
fn compute() {
    let mut x = black_box(1u64);
    for _ in 0..600_000 {
        x = black_box(x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1));
    }
    black_box(x);
}

#[unsafe(no_mangle)]
#[inline(never)]
fn nap() {
    std::thread::sleep(Duration::from_micros(500));
    black_box(());
}

#[unsafe(no_mangle)]
#[inline(never)]
fn leaf(depth: usize) {
    let room = black_box([depth as u8; 200]);
    compute();
    nap();
    black_box(room);
}

#[unsafe(no_mangle)]
#[inline(never)]
fn inner(depth: usize) {
    leaf(black_box(depth));
    black_box(());
}

#[unsafe(no_mangle)]
#[inline(never)]
fn middle(depth: usize) {
    inner(black_box(depth + 1));
    black_box(());
}

#[unsafe(no_mangle)]
#[inline(never)]
fn outer(depth: usize) {
    middle(black_box(depth + 1));
    black_box(());
}

fn main() {
    println!("READY {}", std::process::id());
    std::io::stdout().flush().unwrap();
    let mut line = String::new();
    std::io::stdin().read_line(&mut line).unwrap();
    loop {
        outer(black_box(16));
    }
}
