//! ACPI fixed hardware: power-off, the power button and the PM timer (ACPI 6.5, section 4.8).

use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use crate::port::PortDevice;
use crate::request::{GuestRequest, RequestSink};

/// First I/O port of the register blocks. Status, enable and control lie where QEMU's PC has them, so that a small kernel
/// without an AML interpreter switches off with its usual `outw(0x604, 0x2000)`.
pub const POWER_PORT: u16 = 0x600;
/// Number of ports.
pub const POWER_PORTS: u16 = 12;
/// PM1a event block: status, then enable, two bytes each.
pub const PM1A_EVENT_PORT: u16 = POWER_PORT;
/// PM1a control block: two bytes.
pub const PM1A_CONTROL_PORT: u16 = POWER_PORT + 4;
/// PM timer: four bytes.
pub const PM_TIMER_PORT: u16 = POWER_PORT + 8;
/// The interrupt for power events, active high and level-triggered.
pub const SCI_GSI: u32 = 9;
/// The sleep type that means power-off (`\_S5`).
pub const SLEEP_TYPE_S5: u8 = 0;

/// Frequency of the PM timer.
const PM_TIMER_HZ: u128 = 3_579_545;
const NANOS_PER_SECOND: u128 = 1_000_000_000;

/// Power button, in status and enable.
const PWRBTN: u16 = 1 << 8;
/// What the enable register keeps: TMR, GBL, PWRBTN, SLPBTN, RTC. Only the button ever raises anything.
const ENABLE_MASK: u16 = 1 << 0 | 1 << 5 | PWRBTN | 1 << 9 | 1 << 10;
/// The machine is in ACPI mode; always, there is no other.
const SCI_EN: u16 = 1 << 0;
const SLP_TYP_SHIFT: u16 = 10;
const SLP_TYP_MASK: u16 = 0b111;
const SLP_EN: u16 = 1 << 13;
/// What the control register keeps: BM_RLD and SLP_TYP. GBL_RLS and SLP_EN read as zero.
const CONTROL_MASK: u16 = 1 << 1 | SLP_TYP_MASK << SLP_TYP_SHIFT;

/// A level-triggered interrupt line: called with the level it now has, only when that changes. It must not block.
pub type LevelLine = Box<dyn Fn(bool) + Send + Sync>;

/// The fixed hardware. [`Power::press_button`] may be called from any thread.
pub struct Power {
    registers: Mutex<Registers>,
    requests: RequestSink,
    sci: LevelLine,
    start: Instant,
}

#[derive(Default)]
struct Registers {
    status: u16,
    enable: u16,
    control: u16,
    sci_level: bool,
}

impl Power {
    /// Fixed hardware that reports power-off to `requests` and drives `sci`, the line of [`SCI_GSI`].
    pub fn new(requests: RequestSink, sci: LevelLine) -> Self {
        Self { registers: Mutex::default(), requests, sci, start: Instant::now() }
    }

    /// Presses the power button. A guest that listens to it shuts down in its own time; any other never notices.
    pub fn press_button(&self) {
        self.change(|registers| registers.status |= PWRBTN);
    }

    /// Changes registers and brings the line to the level they ask for, in one step as seen from other threads.
    fn change<T>(&self, change: impl FnOnce(&mut Registers) -> T) -> T {
        let mut registers = self.registers.lock().unwrap_or_else(PoisonError::into_inner);
        let result = change(&mut registers);
        let level = registers.status & registers.enable != 0;
        if level != registers.sci_level {
            registers.sci_level = level;
            (self.sci)(level);
        }
        result
    }

    fn timer(&self) -> u32 {
        // The timer wraps every 20 minutes by design.
        (self.start.elapsed().as_nanos() * PM_TIMER_HZ / NANOS_PER_SECOND) as u32
    }
}

impl Registers {
    fn image(&self, timer: u32) -> [u8; POWER_PORTS as usize] {
        let mut image = [0; POWER_PORTS as usize];
        image[0..2].copy_from_slice(&self.status.to_le_bytes());
        image[2..4].copy_from_slice(&self.enable.to_le_bytes());
        image[4..6].copy_from_slice(&(self.control | SCI_EN).to_le_bytes());
        image[8..12].copy_from_slice(&timer.to_le_bytes());
        image
    }

    /// Takes one byte; true when it switches the machine off. Every access is a run of bytes: the registers have no side
    /// effect that needs more than one at a time, SLP_TYP and SLP_EN being in the same one.
    fn write_byte(&mut self, offset: u16, value: u8) -> bool {
        let shift = 8 * (offset % 2);
        let (bits, other_byte) = (u16::from(value) << shift, 0xff00 >> shift);
        match offset {
            0 | 1 => self.status &= !bits,
            2 | 3 => self.enable = (self.enable & other_byte | bits) & ENABLE_MASK,
            4 | 5 => {
                self.control = (self.control & other_byte | bits) & CONTROL_MASK;
                let sleep_type = self.control >> SLP_TYP_SHIFT & SLP_TYP_MASK;
                return bits & SLP_EN != 0 && sleep_type == u16::from(SLEEP_TYPE_S5);
            }
            _ => {}
        }
        false
    }
}

impl PortDevice for Power {
    fn read(&self, offset: u16, data: &mut [u8]) {
        let timer = self.timer();
        let image = self.registers.lock().unwrap_or_else(PoisonError::into_inner).image(timer);
        for (value, &register) in data.iter_mut().zip(image.iter().skip(usize::from(offset))) {
            *value = register;
        }
    }

    fn write(&self, offset: u16, data: &[u8]) {
        let power_off = self.change(|registers| {
            let mut power_off = false;
            for (offset, &value) in (offset..POWER_PORTS).zip(data) {
                power_off |= registers.write_byte(offset, value);
            }
            power_off
        });
        if power_off {
            (self.requests)(GuestRequest::PowerOff);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, channel};
    use std::thread;

    use super::*;
    use crate::request::tests::sink;

    fn power() -> (Power, Receiver<GuestRequest>, Receiver<bool>) {
        let (requests, received) = sink();
        let (sender, levels) = channel();
        let sci: LevelLine = Box::new(move |level| sender.send(level).expect("the test holds the receiver"));
        (Power::new(requests, sci), received, levels)
    }

    fn read<const N: usize>(power: &Power, port: u16) -> [u8; N] {
        let mut data = [0xff; N];
        power.read(port - POWER_PORT, &mut data);
        data
    }

    #[test]
    fn button_raises_the_line_until_cleared() {
        let (power, _, levels) = power();
        power.press_button();
        assert!(levels.try_recv().is_err(), "not enabled yet");
        power.write(2, &0x0100u16.to_le_bytes());
        assert_eq!(levels.try_recv(), Ok(true));
        power.press_button();
        assert!(levels.try_recv().is_err(), "the line is high already");
        assert_eq!(read(&power, PM1A_EVENT_PORT), 0x0100_0100u32.to_le_bytes());
        // Writing zeroes, or ones elsewhere, clears nothing.
        power.write(0, &0xfeffu16.to_le_bytes());
        assert!(levels.try_recv().is_err());
        power.write(0, &0x0100u16.to_le_bytes());
        assert_eq!(levels.try_recv(), Ok(false));
        assert_eq!(read(&power, PM1A_EVENT_PORT), [0, 0]);
    }

    #[test]
    fn status_and_enable_by_bytes_and_dwords() {
        let (power, _, levels) = power();
        power.write(3, &[0x01]);
        power.press_button();
        assert_eq!(levels.try_recv(), Ok(true));
        power.write(1, &[0x01]);
        assert_eq!(levels.try_recv(), Ok(false));
        power.press_button();
        assert_eq!(levels.try_recv(), Ok(true));
        // One dword clears the status and the enable bit.
        power.write(0, &0x0000_0100u32.to_le_bytes());
        assert_eq!(levels.try_recv(), Ok(false));
        assert_eq!(read(&power, PM1A_EVENT_PORT), [0; 4]);
        power.write(2, &[0xff, 0xff]);
        assert_eq!(read(&power, PM1A_EVENT_PORT + 2), ENABLE_MASK.to_le_bytes());
        // A byte leaves the other byte as it is.
        power.write(2, &[0]);
        assert_eq!(read(&power, PM1A_EVENT_PORT + 2), (ENABLE_MASK & 0xff00).to_le_bytes());
    }

    #[test]
    fn sleep_type_and_enable_power_off() {
        let (power, received, _) = power();
        assert_eq!(read(&power, PM1A_CONTROL_PORT), 1u16.to_le_bytes(), "ACPI mode");
        power.write(4, &0u16.to_le_bytes());
        assert_eq!(read(&power, PM1A_CONTROL_PORT), 1u16.to_le_bytes(), "cannot leave ACPI mode");
        // Another sleep state is not offered and does nothing.
        power.write(4, &(SLP_EN | 1 << SLP_TYP_SHIFT).to_le_bytes());
        assert!(received.try_recv().is_err());
        assert_eq!(read(&power, PM1A_CONTROL_PORT), (1u16 | 1 << SLP_TYP_SHIFT).to_le_bytes(), "SLP_EN reads as zero");
        power.write(4, &0x2000u16.to_le_bytes());
        assert_eq!(received.try_recv(), Ok(GuestRequest::PowerOff));
        power.write(5, &[0x20]);
        assert_eq!(received.try_recv(), Ok(GuestRequest::PowerOff));
    }

    #[test]
    fn timer_counts_up() {
        let (power, _, _) = power();
        let before = u32::from_le_bytes(read(&power, PM_TIMER_PORT));
        thread::sleep(std::time::Duration::from_millis(10));
        let after = u32::from_le_bytes(read(&power, PM_TIMER_PORT));
        // At least what 10 ms are; a busy host may make it any more.
        assert!(after - before >= 35_795, "{before} {after}");
    }

    #[test]
    fn any_access_is_survived() {
        let (power, received, _) = power();
        for offset in [0, 1, 3, 5, 6, 7, 8, 11, 12, 13, u16::MAX] {
            for size in [0, 1, 2, 4, 64] {
                let mut data = vec![0xff; size];
                power.read(offset, &mut data);
                power.write(offset, &data);
            }
        }
        assert!(received.try_recv().is_err(), "SLP_TYP was 7 in all of these");
        let mut past_end = [0xff; 4];
        power.read(10, &mut past_end);
        assert_eq!(past_end[2..], [0xff, 0xff]);
    }
}
