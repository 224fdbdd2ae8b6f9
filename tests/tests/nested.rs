//! Tests on the nested host: an ordinary AMD-V host under emulation, once with each of two kernels.

use std::time::Duration;

use anyhow::Result;
use cistern_tests::debian::CloudKernel;
use cistern_tests::lab::Lab;

/// Generous: a boot takes seconds, but the machine may be busy.
const LIMIT: Duration = Duration::from_secs(300);

/// The lab itself: `kvm_amd` is there, steps report what they did, and a failing one does not stop the next.
fn lab_works(kernel: CloudKernel) -> Result<()> {
    let transcript = Lab::new(kernel)?
        .step("kernel", "uname -r")
        .step("kvm", "set -e; test -c /dev/kvm; grep -qw svm /proc/cpuinfo; test -d /sys/module/kvm_amd")
        .step("nested paging", "cat /sys/module/kvm_amd/parameters/npt")
        .step("failing", "echo before; exit 7")
        .step("after", "printf 'no newline at the end'")
        .run(LIMIT)?;

    assert_eq!(transcript.steps.len(), 5, "{transcript:?}");
    let step = |name| transcript.step(name).expect("the step was started");
    assert!(step("kernel").output.starts_with(&format!("{}.", kernel.version())), "{transcript:?}");
    assert_eq!(step("kvm").status, Some(0), "{transcript:?}");
    assert!(matches!(step("nested paging").output.trim(), "1" | "Y"), "{transcript:?}");
    assert_eq!((step("failing").status, step("failing").output.trim()), (Some(7), "before"));
    assert_eq!((step("after").status, step("after").output.as_str()), (Some(0), "no newline at the end"));
    let error = transcript.check().expect_err("one step failed");
    assert!(error.to_string().contains("step failing: status 7"), "{error}");
    Ok(())
}

#[test]
fn lab_6_1() -> Result<()> {
    lab_works(CloudKernel::V6_1)
}

#[test]
fn lab_6_12() -> Result<()> {
    lab_works(CloudKernel::V6_12)
}
