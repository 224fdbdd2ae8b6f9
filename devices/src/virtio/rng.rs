//! The entropy device (virtio 1.2, section 5.4): random bytes from the host's kernel.

use std::io;

use virtio_bindings::virtio_ids::VIRTIO_ID_RNG;

use super::device::{DeviceError, Driver, VirtioDevice};

/// One queue of requests; drivers have one or two in flight.
const QUEUE_SIZES: &[u16] = &[64];

/// Most bytes answered in one request; a driver that wants more asks again.
const REQUEST_BYTES_MAX: usize = 64 << 10;

/// A source of random bytes for the guest.
#[derive(Debug, Default)]
pub struct Rng;

impl VirtioDevice for Rng {
    fn name(&self) -> &str {
        "rng"
    }

    fn device_id(&self) -> u32 {
        VIRTIO_ID_RNG
    }

    fn queue_sizes(&self) -> &[u16] {
        QUEUE_SIZES
    }

    fn features(&self) -> u64 {
        0
    }

    fn read_config(&self, _offset: u64, _data: &mut [u8]) {}

    fn queue_event(&mut self, queue: usize, driver: &mut Driver) -> Result<(), DeviceError> {
        let memory = driver.ram.memory();
        let requests = &mut driver.queues[queue];
        loop {
            while let Some(mut buffers) = requests.pop_buffers(memory)? {
                if buffers.writable.is_empty() {
                    return Err(DeviceError::Request("no room for random bytes"));
                }
                let bytes = buffers.writable.len().min(REQUEST_BYTES_MAX);
                buffers.writable.truncate(bytes);
                let mut chunk = [0; 4096];
                while !buffers.writable.is_empty() {
                    let part = buffers.writable.len().min(chunk.len());
                    fill_random(&mut chunk[..part])?;
                    buffers.writable.write(&chunk[..part]);
                }
                requests.add_used(memory, buffers.head_index, bytes as u32)?;
            }
            requests.notify(memory, &driver.interrupt)?;
            if !requests.enable_kicks(memory)? {
                return Ok(());
            }
        }
    }
}

/// Fills the buffer from the kernel's generator.
fn fill_random(mut buffer: &mut [u8]) -> Result<(), DeviceError> {
    while !buffer.is_empty() {
        // SAFETY: the pointer and length are those of a live, exclusively borrowed buffer.
        let filled = unsafe { libc::getrandom(buffer.as_mut_ptr().cast(), buffer.len(), 0) };
        match usize::try_from(filled) {
            Ok(filled) => buffer = &mut buffer[filled..],
            Err(_) => {
                let cause = io::Error::last_os_error();
                if cause.kind() != io::ErrorKind::Interrupted {
                    return Err(DeviceError::Host { object: "getrandom".to_owned(), cause });
                }
            }
        }
    }
    Ok(())
}
