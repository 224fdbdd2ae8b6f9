// Builds the probe's kernel. For `include!` in the build script of whoever embeds it (hence no module comment): no
// nested cargo, no extra target to install, two runs of the compiler that runs anyway.

/// Compiles `folder` (kernels/probe) into `$OUT_DIR/probe.elf` with `$RUSTC` and answers that path. `extra` arguments
/// go to the compiler. Tells cargo to run the build script again when anything in the folder changes.
///
/// # Errors
/// What the compiler said, or why it could not be run.
fn build_probe(folder: &std::path::Path, extra: &[&str]) -> Result<std::path::PathBuf, String> {
    let variable = |name: &str| std::env::var_os(name).ok_or_else(|| format!("building the probe: {name} is not set"));
    let (rustc, out) = (variable("RUSTC")?, std::path::PathBuf::from(variable("OUT_DIR")?));
    let (library, image) = (out.join("libcistern_probe.rlib"), out.join("probe.elf"));
    let compile = |arguments: &[&str]| {
        // Relative paths, so that no panic message says where it was built.
        let output = std::process::Command::new(&rustc)
            .current_dir(folder)
            .args(["--edition=2024", "--target=x86_64-unknown-linux-gnu", "-O", "-Cpanic=abort", "-Cstrip=symbols"])
            .args(["-Crelocation-model=static", "-Ccodegen-units=1"])
            .args(extra)
            .args(arguments)
            .output()
            .map_err(|cause| format!("building the probe: {}: {cause}", rustc.to_string_lossy()))?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        if output.status.success() { Ok(()) } else { Err(format!("building the probe: {said}")) }
    };
    let extern_library = format!("cistern_probe={}", library.display());
    let (library, output) = (library.display().to_string(), image.display().to_string());
    compile(&["--crate-name=cistern_probe", "--crate-type=rlib", "src/lib.rs", "-o", &library])?;
    compile(&[
        "--crate-name=probe",
        "--crate-type=bin",
        "kernel/main.rs",
        "--extern",
        &extern_library,
        "-Clink-arg=-nostartfiles",
        "-Clink-arg=-nostdlib",
        "-Clink-arg=-static",
        "-Clink-arg=-no-pie",
        "-Clink-arg=-Wl,--build-id=none,-T,kernel/link.ld",
        "-o",
        &output,
    ])?;
    for part in ["src", "kernel", "build_probe.rs"] {
        println!("cargo::rerun-if-changed={}", folder.join(part).display());
    }
    Ok(image)
}
