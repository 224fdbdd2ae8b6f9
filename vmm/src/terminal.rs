pub fn restore() {}
