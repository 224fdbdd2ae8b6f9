pub fn run(_json: bool) -> anyhow::Result<u8> {
    Ok(0)
}
