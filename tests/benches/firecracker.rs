//! Linux to its init and back on the nested host, against Firecracker with the same kernel and initramfs in the same run.
//! Takes `FIRECRACKER=path` of a Firecracker binary; without one there is nothing to compare with.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use cistern_tests::debian::CloudKernel;
use cistern_tests::guests::Guest;
use cistern_tests::lab::Lab;
use cistern_tests::process;

const RUNS: usize = 7;
const LIMIT: Duration = Duration::from_secs(1200);

/// Firecracker's own defaults for a microVM of this shape.
const CONFIGURATION: &str = r#"{"boot-source":{"kernel_image_path":"/g/vmlinux","initrd_path":"/g/initramfs.cpio",
"boot_args":"console=ttyS0 reboot=k panic=-1 quiet init.run=true"},"drives":[],
"machine-config":{"vcpu_count":1,"mem_size_mib":128}}"#;

fn main() -> Result<()> {
    let Some(firecracker) = std::env::var_os("FIRECRACKER").map(PathBuf::from) else {
        println!("Linux to init against Firecracker: not run, FIRECRACKER=path names no binary");
        return Ok(());
    };
    let scratch = tempfile::tempdir()?;
    let configuration = scratch.path().join("firecracker.json");
    std::fs::write(&configuration, CONFIGURATION)?;
    let cistern = "cistern run --kernel /g/vmlinux --initrd /g/initramfs.cpio --memory 128M --cmdline init.run=true";
    let peer = "/g/firecracker --no-api --config-file /g/firecracker.json";
    let timed = |command: &str| {
        format!("read a b < /proc/uptime; {command} > /tmp/log 2>&1; read c d < /proc/uptime; echo $a $c; cat /tmp/log")
    };
    let mut lab = Lab::new(CloudKernel::V6_12)?
        .with_program(process::binary())?
        .with_file("/g/firecracker", &firecracker)
        .with_file("/g/firecracker.json", &configuration)
        .with_file("/g/vmlinux", &Guest::VmlinuxSmp.build()?)
        .with_file("/g/initramfs.cpio", &Guest::Initramfs.build()?);
    // In turn, so that both see the same machine.
    for run in 0..RUNS {
        lab = lab.step(&format!("cistern {run}"), &timed(cistern)).step(&format!("firecracker {run}"), &timed(peer));
    }
    let transcript = lab.run(LIMIT)?;
    let median = |name: &str| -> Result<f64> {
        let mut seconds = (0..RUNS)
            .map(|run| {
                let name = format!("{name} {run}");
                let step = transcript.step(&name).with_context(|| format!("{name}: did not run"))?;
                anyhow::ensure!(step.output.contains("init.run: status 0"), "{name}: no init:\n{}", step.output);
                let mut words = step.output.split_whitespace().map(str::parse::<f64>);
                match (words.next(), words.next()) {
                    (Some(Ok(start)), Some(Ok(end))) => Ok(end - start),
                    _ => anyhow::bail!("{name}: no times:\n{}", step.output),
                }
            })
            .collect::<Result<Vec<_>>>()?;
        seconds.sort_by(f64::total_cmp);
        Ok(seconds[RUNS / 2])
    };
    let (ours, theirs) = (median("cistern")?, median("firecracker")?);
    println!("Linux to init and reset on the nested host, 1 vCPU, 128 MiB, median of {RUNS} runs in turn:");
    println!("  cistern {ours:.2} s, Firecracker {theirs:.2} s, ratio {:.2} (goal: at most 1)", ours / theirs);
    Ok(())
}
