//! What is sent and answered on the control socket. Where Firecracker's API has the notion, names and meaning are its own
//! (`firecracker.yaml` of its version 1.13); under `/memory` they are ours.

use cistern_memory::manager::ManagerStatistics;
use cistern_memory::pager::PagerStatistics;
use cistern_memory::sharing::ksm::KsmState;
use cistern_memory::sharing::{Mechanisms, SharingStatistics};
use cistern_memory::{BalloonStatistics, PAGE_SIZE};
use serde::{Deserialize, Deserializer, Serialize};

use super::Controlled;

/// Bytes of a mebibyte, as a shift.
const MIB_SHIFT: u32 = 20;
/// The state of every VM that answers.
const RUNNING: &str = "Running";

/// `GET /`.
#[derive(Debug, Serialize)]
pub struct InstanceInfo<'a> {
    id: &'a str,
    state: &'static str,
    vmm_version: &'static str,
    app_name: &'static str,
}

impl<'a> InstanceInfo<'a> {
    pub(super) fn of(machine: &'a Controlled) -> Self {
        Self { id: &machine.name, state: RUNNING, vmm_version: env!("CARGO_PKG_VERSION"), app_name: "Cistern" }
    }
}

/// `GET /version`.
#[derive(Debug, Serialize)]
pub struct Version {
    cistern_version: &'static str,
}

impl Version {
    pub(super) fn this() -> Self {
        Self { cistern_version: env!("CARGO_PKG_VERSION") }
    }
}

/// `GET /vm`.
#[derive(Debug, Serialize)]
pub struct VmInfo<'a> {
    id: &'a str,
    state: &'static str,
    pid: u32,
}

impl<'a> VmInfo<'a> {
    pub(super) fn of(machine: &'a Controlled) -> Self {
        Self { id: &machine.name, state: RUNNING, pid: std::process::id() }
    }
}

/// `GET /machine-config`.
#[derive(Debug, Serialize)]
pub struct MachineConfiguration {
    vcpu_count: usize,
    mem_size_mib: u64,
    smt: bool,
    track_dirty_pages: bool,
}

impl MachineConfiguration {
    pub(super) fn of(machine: &Controlled) -> Self {
        Self {
            vcpu_count: machine.cpus,
            mem_size_mib: machine.memory_bytes >> MIB_SHIFT,
            smt: false,
            track_dirty_pages: false,
        }
    }
}

/// `GET /balloon`.
#[derive(Debug, Serialize)]
pub struct BalloonConfiguration {
    amount_mib: u64,
    deflate_on_oom: bool,
    stats_polling_interval_s: u16,
    free_page_reporting: bool,
}

impl BalloonConfiguration {
    pub(super) fn of(machine: &Controlled, target_bytes: u64) -> Self {
        Self {
            amount_mib: target_bytes >> MIB_SHIFT,
            deflate_on_oom: true,
            // The guest is asked whenever a client asks; 0 would say that there are no statistics.
            stats_polling_interval_s: 1,
            free_page_reporting: machine.free_page_reporting,
        }
    }
}

/// `PATCH /balloon`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BalloonUpdate {
    /// What the balloon shall hold, in MiB; null leaves it to the pool.
    #[serde(deserialize_with = "present")]
    pub amount_mib: Option<u64>,
}

/// MiB in bytes; `None` when that is more than the guest has.
pub(super) fn target_bytes(amount_mib: u64, memory_bytes: u64) -> Option<u64> {
    amount_mib.checked_mul(1 << MIB_SHIFT).filter(|bytes| *bytes <= memory_bytes)
}

/// `GET /balloon/statistics`. Memory and swap in bytes; what the guest did not report is left out.
#[derive(Debug, Serialize)]
pub struct BalloonReport {
    target_pages: u64,
    actual_pages: u64,
    target_mib: u64,
    actual_mib: u64,
    #[serde(flatten)]
    guest: GuestReport,
}

#[derive(Debug, Default, Serialize)]
struct GuestReport {
    #[serde(skip_serializing_if = "Option::is_none")]
    swap_in: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    swap_out: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    major_faults: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    minor_faults: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    free_memory: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    total_memory: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    available_memory: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    disk_caches: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    hugetlb_allocations: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    hugetlb_failures: Option<u64>,
}

impl BalloonReport {
    pub(super) fn new(target_bytes: u64, actual_bytes: u64, guest: Option<BalloonStatistics>) -> Self {
        let guest = guest.unwrap_or_default();
        Self {
            target_pages: target_bytes / PAGE_SIZE,
            actual_pages: actual_bytes / PAGE_SIZE,
            target_mib: target_bytes >> MIB_SHIFT,
            actual_mib: actual_bytes >> MIB_SHIFT,
            guest: GuestReport {
                swap_in: guest.swap_in_bytes,
                swap_out: guest.swap_out_bytes,
                major_faults: guest.major_faults,
                minor_faults: guest.minor_faults,
                free_memory: guest.free_bytes,
                total_memory: guest.total_bytes,
                available_memory: guest.available_bytes,
                disk_caches: guest.disk_caches_bytes,
                hugetlb_allocations: guest.hugetlb_allocations,
                hugetlb_failures: guest.hugetlb_failures,
            },
        }
    }
}

/// `PUT /actions`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Action {
    /// What to do.
    pub action_type: ActionType,
}

/// What can be done to a running VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub enum ActionType {
    /// Press the power button: a machine without a keyboard has no nearer thing.
    SendCtrlAltDel,
    /// Stop the VM at once. Firecracker has no such action.
    InstanceStop,
}

/// `GET /memory`.
#[derive(Debug, Serialize)]
pub struct MemoryReport {
    /// The pager's account.
    #[serde(flatten)]
    pub pager: PagerStatistics,
    /// What the guest has in its balloon.
    pub balloon_inflated_bytes: u64,
    /// What free page reporting has given back since boot.
    pub reported_bytes: u64,
    /// The VM's part in its pool, if it is in one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pool: Option<ManagerStatistics>,
    /// What was found that need not be there, if anything looks for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sharing: Option<SharingReport>,
}

/// `GET /sharing`, and a part of `GET /memory`.
#[derive(Debug, Serialize)]
pub struct SharingReport {
    /// The scanner's account.
    #[serde(flatten)]
    pub scanner: SharingStatistics,
    /// Pages that are stored as a reference to another's content.
    pub stored_once_pages: u64,
    /// The kernel's merging, of the whole host and of this VM.
    pub ksm: KsmState,
}

impl SharingReport {
    pub(super) fn of(machine: &Controlled) -> Option<Self> {
        let sharing = machine.sharing.as_ref()?;
        let tuner = machine.pool.as_ref().and_then(|pool| pool.statistics().ksm_tuner);
        Some(Self {
            scanner: sharing.statistics(),
            stored_once_pages: machine.pager.usage().duplicate_pages,
            ksm: KsmState::read(tuner.as_ref()),
        })
    }
}

/// `PATCH /sharing`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SharingUpdate {
    /// `off`, or some of `zero,store,ksm`.
    pub mechanisms: Mechanisms,
}

impl MemoryReport {
    pub(super) fn of(machine: &Controlled) -> Self {
        Self {
            pager: machine.pager.statistics(),
            balloon_inflated_bytes: machine.balloon.as_ref().map_or(0, |balloon| balloon.inflated_bytes()),
            reported_bytes: machine.balloon.as_ref().map_or(0, |balloon| balloon.reported_bytes()),
            pool: machine.pool.as_ref().map(|pool| pool.statistics()),
            sharing: SharingReport::of(machine),
        }
    }
}

/// `PATCH /memory`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MemoryUpdate {
    /// What resident and stored guest memory may cost the host; null lifts the limit.
    // To leave it out is a mistake: with a function of its own it is not taken for null.
    #[serde(deserialize_with = "present")]
    pub resident_bytes: Option<u64>,
}

fn present<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u64>, D::Error> {
    Option::deserialize(deserializer)
}

/// What every refusal says.
#[derive(Debug, Serialize)]
pub struct Fault {
    /// Object and cause.
    pub fault_message: String,
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_the_guest_did_not_report_is_left_out() {
        let report = |guest| serde_json::to_value(BalloonReport::new(3 << 20, 4096, guest)).expect("JSON");
        let own = json!({"target_pages": 768, "actual_pages": 1, "target_mib": 3, "actual_mib": 0});
        assert_eq!(report(None), own);
        let guest = BalloonStatistics { free_bytes: Some(7), swap_in_bytes: Some(0), ..Default::default() };
        let mut expected = own;
        expected["free_memory"] = json!(7);
        expected["swap_in"] = json!(0);
        assert_eq!(report(Some(guest)), expected);
    }

    #[test]
    fn null_is_said_and_not_left_out() {
        let parse = |text| serde_json::from_str::<MemoryUpdate>(text).map(|update| update.resident_bytes).ok();
        assert_eq!(parse(r#"{"resident_bytes": 5}"#), Some(Some(5)));
        assert_eq!(parse(r#"{"resident_bytes": null}"#), Some(None));
        for text in
            ["{}", r#"{"resident_bytes": -1}"#, r#"{"resident_bytes": "5"}"#, r#"{"resident_bytes": 1, "x": 2}"#]
        {
            assert_eq!(parse(text), None, "{text}");
        }
    }

    #[test]
    fn a_balloon_is_no_larger_than_its_guest() {
        let target = |amount_mib| target_bytes(amount_mib, 64 << 20);
        assert_eq!([0, 64].map(target), [Some(0), Some(64 << 20)]);
        assert_eq!([65, u64::MAX, 1 << 44].map(target), [None; 3]);
    }
}
