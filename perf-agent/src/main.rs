fn main() -> anyhow::Result<()> {
    let mut k = perf_agent::kernel::Kernel::load(&Default::default())?;
    for (n, i) in k.verified()? {
        println!("{n} {i:?}");
    }
    k.attach()?;
    k.set_syscalls(true)?;
    println!("{:#?}", k.signals);
    Ok(())
}
