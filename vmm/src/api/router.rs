//! Which path answers what.

use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use cistern_memory::Balloon;
use cistern_memory::pager::{Limits, PagerError};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::{Body, Bytes};
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::time::{Instant, sleep};

use super::body::{
    Action, ActionType, BalloonConfiguration, BalloonReport, BalloonUpdate, Fault, InstanceInfo, MachineConfiguration,
    MemoryReport, MemoryUpdate, SharingReport, SharingUpdate, Version, VmInfo, target_bytes,
};
use super::{Controlled, metrics};
use crate::options::MINIMUM_RESIDENT;
use crate::outcome::Outcome;

/// No request has more to say.
const BODY_BYTES_MAX: usize = 64 << 10;
/// How long a guest has to report its memory; an idle one takes a few milliseconds.
const STATISTICS_PATIENCE: Duration = Duration::from_millis(200);
/// How often it is looked whether it has.
const STATISTICS_STEP: Duration = Duration::from_millis(5);

/// Why a request is not granted.
#[derive(Debug, thiserror::Error)]
enum Refusal {
    #[error("{0}: there is no such path")]
    Path(String),
    #[error("{method} {path}: only {allowed}")]
    Method { method: Method, path: String, allowed: &'static str },
    #[error("body: longer than {} KiB", BODY_BYTES_MAX >> 10)]
    TooLong,
    #[error("body: {0}")]
    Body(String),
    #[error("amount_mib null: the VM is in no pool that could say")]
    NoPool,
    #[error("resident_bytes: the VM is in a pool, which limits it")]
    Pool,
    #[error("amount_mib {amount_mib}: the guest has {}", memory_bytes >> 20)]
    Amount { amount_mib: u64, memory_bytes: u64 },
    #[error("resident_bytes {bytes}: at least {}", MINIMUM_RESIDENT.bytes)]
    Resident { bytes: u64 },
    #[error("this VM has no balloon: it was started with --balloon off")]
    NoBalloon,
    #[error("this VM shares nothing: it was started without --pool or --sharing")]
    NoSharing,
    #[error("mechanisms ksm: the VM is in no pool to merge with")]
    NoPoolToMerge,
    #[error("mechanisms ksm: pages cannot be moved here (Linux 6.8, without --eviction copy), and so not be merged")]
    NoMerging,
    #[error(transparent)]
    Pager(#[from] PagerError),
}

impl Refusal {
    fn status(&self) -> StatusCode {
        match self {
            Self::Path(_) => StatusCode::NOT_FOUND,
            Self::Method { .. } => StatusCode::METHOD_NOT_ALLOWED,
            Self::TooLong => StatusCode::PAYLOAD_TOO_LARGE,
            Self::Body(_)
            | Self::Amount { .. }
            | Self::Resident { .. }
            | Self::NoBalloon
            | Self::NoPool
            | Self::NoSharing
            | Self::NoPoolToMerge
            | Self::NoMerging
            | Self::Pool => StatusCode::BAD_REQUEST,
            Self::Pager(_) => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }
}

/// Answers one request. Answers are a few KiB and made at once, but for the guest's own statistics.
pub(super) async fn respond<B>(machine: &Controlled, request: Request<B>) -> Response<Full<Bytes>>
where
    B: Body,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
{
    route(machine, request).await.unwrap_or_else(|refusal| {
        let mut response = json(&Fault { fault_message: refusal.to_string() });
        *response.status_mut() = refusal.status();
        if let Refusal::Method { allowed, .. } = refusal {
            response.headers_mut().insert(ALLOW, HeaderValue::from_static(allowed));
        }
        response
    })
}

async fn route<B>(machine: &Controlled, request: Request<B>) -> Result<Response<Full<Bytes>>, Refusal>
where
    B: Body,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
{
    if request.body().size_hint().lower() > BODY_BYTES_MAX as u64 {
        return Err(Refusal::TooLong);
    }
    let (head, body) = request.into_parts();
    let path = head.uri.path();
    let allowed = match path {
        "/" | "/version" | "/vm" | "/machine-config" | "/balloon/statistics" | "/metrics" => "GET",
        "/balloon" | "/memory" | "/sharing" => "GET, PATCH",
        "/actions" => "PUT",
        _ => return Err(Refusal::Path(path.to_owned())),
    };
    Ok(match (head.method.as_str(), path) {
        ("GET", "/") => json(&InstanceInfo::of(machine)),
        ("GET", "/version") => json(&Version::this()),
        ("GET", "/vm") => json(&VmInfo::of(machine)),
        ("GET", "/machine-config") => json(&MachineConfiguration::of(machine)),
        ("GET", "/balloon") => json(&BalloonConfiguration::of(machine, balloon(machine)?.target_bytes())),
        ("PATCH", "/balloon") => {
            let balloon = balloon(machine)?;
            let update: BalloonUpdate = read(body).await?;
            let memory_bytes = machine.memory_bytes;
            match (update.amount_mib, &machine.pool) {
                (None, Some(pool)) => pool.set_manual_balloon(None),
                (None, None) => return Err(Refusal::NoPool),
                (Some(amount_mib), pool) => {
                    let too_much = Refusal::Amount { amount_mib, memory_bytes };
                    let target_bytes = target_bytes(amount_mib, memory_bytes).ok_or(too_much)?;
                    if let Some(pool) = pool {
                        pool.set_manual_balloon(Some(target_bytes));
                    }
                    balloon.set_target_bytes(target_bytes);
                }
            }
            done()
        }
        ("GET", "/balloon/statistics") => json(&balloon_report(&**balloon(machine)?).await),
        ("PUT", "/actions") => {
            match read::<Action, _>(body).await?.action_type {
                ActionType::SendCtrlAltDel => machine.power.press_button(),
                ActionType::InstanceStop => machine.verdict.reach(Ok(Outcome::Stopped)),
            }
            done()
        }
        ("GET", "/memory") => json(&MemoryReport::of(machine)),
        ("PATCH", "/memory") => {
            let update: MemoryUpdate = read(body).await?;
            if machine.pool.is_some() {
                return Err(Refusal::Pool);
            }
            if let Some(bytes) = update.resident_bytes.filter(|bytes| *bytes < MINIMUM_RESIDENT.bytes) {
                return Err(Refusal::Resident { bytes });
            }
            machine.pager.set_limits(Limits::alone(update.resident_bytes))?;
            done()
        }
        ("GET", "/sharing") => json(&SharingReport::of(machine).ok_or(Refusal::NoSharing)?),
        ("PATCH", "/sharing") => {
            let sharing = machine.sharing.as_ref().ok_or(Refusal::NoSharing)?;
            let SharingUpdate { mechanisms } = read(body).await?;
            if mechanisms.ksm && machine.pool.is_none() {
                return Err(Refusal::NoPoolToMerge);
            }
            if mechanisms.ksm && !machine.pager.can_merge()? {
                return Err(Refusal::NoMerging);
            }
            sharing.set_mechanisms(mechanisms);
            done()
        }
        ("GET", "/metrics") => answer(metrics::CONTENT_TYPE, metrics::text(MemoryReport::of(machine))),
        _ => return Err(Refusal::Method { path: path.to_owned(), method: head.method, allowed }),
    })
}

fn balloon(machine: &Controlled) -> Result<&Arc<dyn Balloon>, Refusal> {
    machine.balloon.as_ref().ok_or(Refusal::NoBalloon)
}

/// Asks the guest for fresh statistics and takes what is there when they have come, or should have.
async fn balloon_report(balloon: &dyn Balloon) -> BalloonReport {
    let before = balloon.statistics();
    balloon.request_statistics();
    let deadline = Instant::now() + STATISTICS_PATIENCE;
    // That they have come shows only in what they say.
    while balloon.statistics() == before && Instant::now() < deadline {
        sleep(STATISTICS_STEP).await;
    }
    BalloonReport::new(balloon.target_bytes(), balloon.inflated_bytes(), balloon.statistics())
}

/// Reads a whole body as JSON.
async fn read<T, B>(body: B) -> Result<T, Refusal>
where
    T: DeserializeOwned,
    B: Body,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
{
    let bytes = match Limited::new(body, BODY_BYTES_MAX).collect().await {
        Ok(collected) => collected.to_bytes(),
        Err(error) if error.is::<LengthLimitError>() => return Err(Refusal::TooLong),
        Err(error) => return Err(Refusal::Body(error.to_string())),
    };
    serde_json::from_slice(&bytes).map_err(|error| Refusal::Body(error.to_string()))
}

fn json(value: &impl Serialize) -> Response<Full<Bytes>> {
    let text = serde_json::to_vec(value).expect("plain structs with text keys are JSON");
    answer("application/json", text)
}

fn answer(content_type: &'static str, text: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(text.into()));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

fn done() -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::default());
    *response.status_mut() = StatusCode::NO_CONTENT;
    response
}

#[cfg(test)]
mod tests {
    use cistern_devices::power::Power;
    use cistern_devices::virtio::balloon;
    use cistern_memory::GuestRam;
    use cistern_memory::pager::{EvictionMethod, Pager, PagerConfig};
    use cistern_memory::sharing::{Scanner, SharingConfig};
    use serde_json::{Value, json};

    use super::*;
    use crate::verdict::Verdict;

    const MIB: u64 = 1 << 20;

    /// A machine of which nothing runs.
    fn machine(has_balloon: bool) -> Controlled {
        let ram = GuestRam::new(&[0..64 * MIB]).expect("RAM");
        let device = balloon::Balloon::new(true).expect("a balloon");
        let handle: Arc<dyn Balloon> = device.handle();
        Controlled {
            name: "one".to_owned(),
            cpus: 2,
            memory_bytes: ram.size_bytes(),
            balloon: has_balloon.then_some(handle),
            free_page_reporting: true,
            power: Arc::new(Power::new(Arc::new(|_| {}), Box::new(|_| {}))),
            verdict: Arc::new(Verdict::new().expect("an eventfd")),
            pager: Pager::new(ram, PagerConfig::default(), Box::new(|page| panic!("{page}"))).expect("a pager"),
            pool: None,
            sharing: None,
        }
    }

    /// Status, content type, and body as text.
    fn ask(machine: &Controlled, method: &str, path: &str, body: &str) -> (u16, String, String) {
        let request = Request::builder().method(method).uri(path).body(Full::new(Bytes::from(body.to_owned())));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
        runtime.block_on(async {
            let response = respond(machine, request.expect("a request")).await;
            let content_type = response.headers().get(CONTENT_TYPE).map(|value| value.to_str().expect("text"));
            let (status, content_type) = (response.status().as_u16(), content_type.unwrap_or("").to_owned());
            let body = response.into_body().collect().await.expect("a body").to_bytes();
            (status, content_type, String::from_utf8(body.to_vec()).expect("text"))
        })
    }

    fn get(machine: &Controlled, path: &str) -> Value {
        let (status, content_type, body) = ask(machine, "GET", path, "");
        assert_eq!((status, content_type.as_str()), (200, "application/json"), "{body}");
        serde_json::from_str(&body).expect("JSON")
    }

    #[track_caller]
    fn refused(machine: &Controlled, method: &str, path: &str, body: &str, status: u16, words: &str) {
        let (answered, _, text) = ask(machine, method, path, body);
        assert_eq!(answered, status, "{method} {path} {body}: {text}");
        let fault: Value = serde_json::from_str(&text).expect("JSON");
        let message = fault["fault_message"].as_str().expect("a message");
        assert!(message.contains(words), "{method} {path} {body}: {message}");
    }

    #[test]
    fn what_firecracker_answers_is_answered_alike() {
        let machine = machine(true);
        let version = env!("CARGO_PKG_VERSION");
        let instance = json!({"id": "one", "state": "Running", "vmm_version": version, "app_name": "Cistern"});
        assert_eq!(get(&machine, "/"), instance);
        assert_eq!(get(&machine, "/version"), json!({"cistern_version": version}));
        assert_eq!(get(&machine, "/vm"), json!({"id": "one", "state": "Running", "pid": std::process::id()}));
        let config = json!({"vcpu_count": 2, "mem_size_mib": 64, "smt": false, "track_dirty_pages": false});
        assert_eq!(get(&machine, "/machine-config"), config);
    }

    #[test]
    fn the_balloon_takes_a_target_it_can_reach() {
        let machine = machine(true);
        assert_eq!(ask(&machine, "PATCH", "/balloon", r#"{"amount_mib": 64}"#).0, 204);
        let balloon = json!({"amount_mib": 64, "deflate_on_oom": true, "stats_polling_interval_s": 1,
                             "free_page_reporting": true});
        assert_eq!(get(&machine, "/balloon"), balloon);
        let statistics = json!({"target_pages": 16384, "actual_pages": 0, "target_mib": 64, "actual_mib": 0});
        assert_eq!(get(&machine, "/balloon/statistics"), statistics, "no guest, so nothing of the guest's");
        refused(&machine, "PATCH", "/balloon", r#"{"amount_mib": 65}"#, 400, "amount_mib 65: the guest has 64");
        refused(&machine, "PATCH", "/balloon", r#"{"amount_mib": -1}"#, 400, "-1");
        assert_eq!(get(&machine, "/balloon"), balloon, "nothing has changed");
    }

    #[test]
    fn without_a_balloon_there_is_none_to_ask() {
        let machine = machine(false);
        for (method, path) in [("GET", "/balloon"), ("PATCH", "/balloon"), ("GET", "/balloon/statistics")] {
            refused(&machine, method, path, r#"{"amount_mib": 1}"#, 400, "no balloon");
        }
        assert_eq!(get(&machine, "/memory")["balloon_inflated_bytes"], 0);
    }

    #[test]
    fn memory_is_reported_and_limited() {
        let machine = machine(true);
        let memory = get(&machine, "/memory");
        assert_eq!(memory["ram_pages"], 16384, "{memory}");
        assert_eq!(memory["resident_limit_bytes"], Value::Null, "{memory}");
        assert_eq!(memory["reported_bytes"], 0, "{memory}");
        refused(&machine, "PATCH", "/memory", r#"{"resident_bytes": 8388607}"#, 400, "at least 8388608");
        refused(&machine, "PATCH", "/memory", "{}", 400, "missing field `resident_bytes`");
        let (status, content_type, text) = ask(&machine, "GET", "/metrics", "");
        assert_eq!((status, content_type.as_str()), (200, metrics::CONTENT_TYPE));
        assert!(text.contains("\ncistern_ram_pages 16384\n"), "{text}");
    }

    /// With a scanner, which has nothing to do.
    fn sharing_machine(pool: bool, eviction: Option<EvictionMethod>) -> (Controlled, Scanner) {
        let ram = GuestRam::new(&[0..64 * MIB]).expect("RAM");
        let config = PagerConfig { eviction, ..PagerConfig::default() };
        let pager = Pager::new(Arc::clone(&ram), config, Box::new(|page| panic!("{page}"))).expect("a pager");
        let scanner =
            Scanner::start(&pager, &ram, SharingConfig::default(), None, crate::thread_id::current).expect("a thread");
        let (pool, sharing) = (pool.then(Arc::default), Some(scanner.handle()));
        (Controlled { pager, pool, sharing, ..machine(false) }, scanner)
    }

    #[test]
    fn sharing_is_switched_if_it_can_be() {
        let (machine, _scanner) = sharing_machine(false, None);
        assert_eq!(get(&machine, "/sharing")["mechanisms"], "zero,store");
        assert_eq!(ask(&machine, "PATCH", "/sharing", r#"{"mechanisms": "off"}"#).0, 204);
        assert_eq!(get(&machine, "/memory")["sharing"]["mechanisms"], "off");
        let (_, _, text) = ask(&machine, "GET", "/metrics", "");
        for line in [
            "cistern_sharing_enabled{mechanism=\"zero\"} 0",
            "cistern_evictions_total{kind=\"zero_freed\"} 0",
            "cistern_ksm_pages{kind=\"shared\"} ",
            "cistern_ksm_process_pages{kind=\"merging\"} ",
            "cistern_ksm_run ",
            "cistern_ksm_full_scans_total ",
        ] {
            assert!(text.lines().any(|said| said.starts_with(line)), "no '{line}' in {text}");
        }
        for (body, words) in [
            (r#"{"mechanisms": "tps"}"#, "'tps': sharing is off, or some of zero,store,ksm"),
            (r#"{"mechanisms": ""}"#, "'': sharing is off"),
            (r#"{"mechanisms": null}"#, "null"),
            (r#"{"mechanisms": ["zero"]}"#, "sequence"),
            (r#"{"mechanism": "zero"}"#, "unknown field `mechanism`"),
            ("{}", "missing field `mechanisms`"),
            ("zero", "expected"),
            (r#"{"mechanisms": "zero,ksm"}"#, "the VM is in no pool to merge with"),
        ] {
            refused(&machine, "PATCH", "/sharing", body, 400, words);
        }
        assert_eq!(get(&machine, "/sharing")["mechanisms"], "off", "nothing has changed");
        let (machine, _scanner) = sharing_machine(true, Some(EvictionMethod::Copy));
        refused(&machine, "PATCH", "/sharing", r#"{"mechanisms": "ksm"}"#, 400, "pages cannot be moved here");
    }

    #[test]
    fn without_a_scanner_nothing_is_shared() {
        for (method, body) in [("GET", ""), ("PATCH", r#"{"mechanisms": "zero"}"#)] {
            refused(&machine(true), method, "/sharing", body, 400, "this VM shares nothing");
        }
    }

    #[test]
    fn actions_act() {
        let machine = machine(true);
        assert_eq!(ask(&machine, "PUT", "/actions", r#"{"action_type": "SendCtrlAltDel"}"#).0, 204);
        assert!(machine.verdict.take().is_none(), "the guest's to answer");
        refused(&machine, "PUT", "/actions", r#"{"action_type": "InstanceStart"}"#, 400, "`InstanceStart`");
        assert!(machine.verdict.take().is_none());
        assert_eq!(ask(&machine, "PUT", "/actions", r#"{"action_type": "InstanceStop"}"#).0, 204);
        assert!(matches!(machine.verdict.take(), Some(Ok(Outcome::Stopped))));
    }

    #[test]
    fn what_makes_no_sense_is_refused_in_words() {
        let machine = machine(true);
        refused(&machine, "GET", "/nowhere", "", 404, "/nowhere: there is no such path");
        refused(&machine, "GET", "/balloon/", "", 404, "/balloon/");
        refused(&machine, "POST", "/balloon", "", 405, "POST /balloon: only GET, PATCH");
        refused(&machine, "HEAD", "/", "", 405, "only GET");
        refused(&machine, "GET", "/actions", "", 405, "only PUT");
        for body in ["", "{", "[]", "null", "\u{0}", r#"{"amount_mib": "1"}"#, r#"{"amount_mib": 1, "x": 1}"#] {
            refused(&machine, "PATCH", "/balloon", body, 400, "body: ");
        }
        let deep = "[".repeat(60_000);
        refused(&machine, "PUT", "/actions", &deep, 400, "body: ");
        refused(&machine, "PUT", "/actions", &" ".repeat(BODY_BYTES_MAX + 1), 413, "longer than 64 KiB");
    }
}
