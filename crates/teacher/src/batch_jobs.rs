//! A service that takes files of requests as jobs: upload, create, list, look, fetch.

use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use stillroom_core::Cleared;
use stillroom_net::{Client, Request, Response, encode_component};
use stillroom_store::{StoreError, atomic_write, atomic_write_with, digest_file};

use crate::TeacherError;
use crate::batch::JobEnd;
use crate::batch_desk::{Desk, Waiting};
use crate::batch_files::{JOBS, RESULTS, failed, requests_name, stem};
use crate::call::{self, Fault, FaultKind, of_net, of_status};
use crate::redact;
use crate::schedule::Stop;
use crate::session::Teacher;
use crate::settings::Endpoint;

/// Bytes of what a service says of jobs.
const BODY_BYTES_MAX: u64 = 16 << 20;
/// Jobs of one page, as many as OpenAI gives.
const PAGE: usize = 100;
/// Pages that are looked through for a job of ours; the newest jobs come first.
const PAGES_MAX: usize = 200;
/// Bytes of a name that a service gives.
const NAME_BYTES_MAX: usize = 512;
const WINDOW: &str = "24h";
/// Names of what a job is known by.
const RUN: &str = "stillroom_run";
const FILE: &str = "stillroom_file";
/// The first wait after a fault; each further one doubles it.
const WAIT: Duration = Duration::from_millis(500);
const WAIT_MAX: Duration = Duration::from_secs(60);
/// Faults of one request, those included that only ask for patience.
const FAULTS_MAX: u32 = 1000;
/// Errors of a job that are told.
const ERRORS_MAX: usize = 5;

/// What is kept of a file's job, in `jobs/requests-0000.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Record {
    pub(crate) job: String,
    pub(crate) status: String,
    /// Whether all of its results lie in the folder.
    pub(crate) fetched: bool,
}

/// How a service's jobs are dealt with.
#[derive(Clone, Debug)]
pub(crate) struct Manners {
    pub(crate) run: String,
    pub(crate) poll: Duration,
    pub(crate) until: Option<Instant>,
}

/// What carrying files came to.
pub(crate) enum Carried {
    /// Results came, or will not; those jobs need a look by somebody.
    Came(Vec<JobEnd>),
    /// Jobs still run, and nobody wants to wait longer.
    Runs,
    Stopped(Stop),
}

#[derive(Clone, Debug, Deserialize)]
struct Job {
    id: String,
    #[serde(default)]
    status: String,
    metadata: Option<Value>,
    output_file_id: Option<String>,
    error_file_id: Option<String>,
    errors: Option<Value>,
    request_counts: Option<Counted>,
}

#[derive(Clone, Copy, Debug, Default, Deserialize)]
struct Counted {
    #[serde(default)]
    total: u64,
    #[serde(default)]
    completed: u64,
    #[serde(default)]
    failed: u64,
}

#[derive(Deserialize)]
struct Page {
    data: Vec<Job>,
    #[serde(default)]
    has_more: bool,
}

#[derive(Deserialize)]
struct Uploaded {
    id: String,
}

impl Job {
    /// Whether what results there are can be fetched. `validating`, `in_progress`, `finalizing`, `cancelling` and whatever
    /// else a service may say are no end.
    fn has_ended(&self) -> bool {
        matches!(self.status.as_str(), "completed" | "expired" | "cancelled" | "failed")
    }

    fn is_of(&self, file: &str) -> bool {
        self.metadata.as_ref().and_then(|all| all.get(FILE)).and_then(Value::as_str) == Some(file)
    }

    /// Better ones have more to give.
    fn rank(&self) -> u8 {
        match self.status.as_str() {
            "completed" => 0,
            "failed" => 4,
            "cancelled" | "cancelling" => 3,
            "expired" => 2,
            _ => 1,
        }
    }

    fn errors(&self) -> Vec<String> {
        let told =
            self.errors.iter().filter_map(|errors| errors["data"].as_array()).flatten().take(ERRORS_MAX);
        told.filter_map(|error| stillroom_formats::openai::read_error(error.to_string().as_bytes()))
            .map(|error| match error.code {
                Some(code) => format!("{code}: {}", error.message),
                None => error.message,
            })
            .collect()
    }
}

pub(crate) struct Service<'a> {
    client: Client,
    teacher: &'a Teacher,
    endpoint: &'a Endpoint,
    manners: Manners,
}

/// What a request to the service came to, where it is not what was asked for.
enum Trouble {
    Fault(Fault),
    /// Another try is of no use.
    Stopped(Stop),
    Broken(TeacherError),
}

impl From<TeacherError> for Trouble {
    fn from(error: TeacherError) -> Trouble {
        Trouble::Broken(error)
    }
}

impl From<StoreError> for Trouble {
    fn from(error: StoreError) -> Trouble {
        Trouble::Broken(error.into())
    }
}

type Got<T> = Result<T, Trouble>;

impl<'a> Service<'a> {
    pub(crate) fn new(teacher: &'a Teacher, cleared: Cleared, manners: Manners) -> Option<Service<'a>> {
        let client = Client::new(cleared, teacher.client_options(1));
        Some(Service { client, teacher, endpoint: teacher.endpoints.first()?, manners })
    }

    /// Files whose results lie in the folder already.
    pub(crate) fn mark_fetched(&self, desk: &mut Desk<'_>) -> Result<(), TeacherError> {
        for number in desk.waiting().into_keys() {
            if record(&desk.folder, number)?.is_some_and(|record| record.fetched) {
                desk.is_over(number);
            }
        }
        Ok(())
    }

    /// Submits what waits and has no job, and waits until some job has ended. `heard` is told how jobs stand.
    pub(crate) fn carry(
        &self,
        desk: &mut Desk<'_>,
        heard: &mut dyn FnMut(&str),
    ) -> Result<Carried, TeacherError> {
        match self.submit(desk, heard).and_then(|()| self.wait(desk, heard)) {
            Ok(carried) => Ok(carried),
            Err(Trouble::Stopped(stop)) => Ok(Carried::Stopped(stop)),
            Err(Trouble::Fault(fault)) => Ok(Carried::Stopped(Stop::Hopeless { fault: fault.what })),
            Err(Trouble::Broken(error)) => Err(error),
        }
    }

    fn wait(&self, desk: &mut Desk<'_>, heard: &mut dyn FnMut(&str)) -> Got<Carried> {
        loop {
            let (mut ends, mut came, mut shown) = (Vec::new(), false, Vec::new());
            for number in desk.waiting().into_keys() {
                let Some(record) = record(&desk.folder, number)? else { continue };
                let job = self.again(|_| self.look(&record.job))?;
                shown.push(told(number, &job));
                if job.has_ended() {
                    ends.extend(self.fetch(desk, number, &job)?);
                    came = true;
                }
            }
            heard(&shown.join(", "));
            if came {
                return Ok(Carried::Came(ends));
            }
            let left = self.manners.until.map(|until| until.saturating_duration_since(Instant::now()));
            if left.is_some_and(|left| left.is_zero()) {
                return Ok(Carried::Runs);
            }
            std::thread::sleep(left.map_or(self.manners.poll, |left| left.min(self.manners.poll)));
        }
    }

    /// Gives every waiting file a job: one that is there, or a new one as far as the budget allows.
    fn submit(&self, desk: &Desk<'_>, heard: &mut dyn FnMut(&str)) -> Got<()> {
        let (mut without, mut committed, mut running) = (Vec::new(), (0, 0.0), 0);
        let more = |sum: (u64, f64), file: &Waiting| (sum.0 + file.tokens, sum.1 + file.usd);
        for (number, file) in desk.waiting() {
            let path = desk.folder.join(requests_name(number));
            if record(&desk.folder, number)?.is_some() {
                (committed, running) = (more(committed, &file), running + 1);
            } else {
                without.push((number, file, digest_file(&path)?.0.to_string()));
            }
        }
        if without.is_empty() {
            return Ok(());
        }
        heard("looking for jobs of this run");
        let digests: Vec<&str> = without.iter().map(|(.., digest)| digest.as_str()).collect();
        let found = self.find(&digests)?;
        let mut new = Vec::new();
        for ((number, file, digest), job) in without.iter().zip(found) {
            match job {
                Some(job) => {
                    keep(&desk.folder, *number, &Record::of(&job, false))?;
                    (committed, running) = (more(committed, file), running + 1);
                }
                None => new.push((*number, file, digest)),
            }
        }
        for (number, file, digest) in new {
            committed = more(committed, file);
            match desk.beyond(committed)? {
                None => {}
                // What runs may come cheaper than it was estimated.
                Some(_) if running > 0 => return Ok(()),
                Some(what) => return Err(Trouble::Stopped(Stop::Budget(what))),
            }
            heard(&format!("submitting {}", requests_name(number)));
            self.submit_one(desk, number, digest)?;
            running += 1;
        }
        Ok(())
    }

    fn submit_one(&self, desk: &Desk<'_>, number: u32, digest: &str) -> Got<()> {
        let (path, url) = (desk.folder.join(requests_name(number)), desk.url());
        let file = self.again(|_| self.upload(&path, digest))?;
        let job = self.again(|tries| {
            // The request before may have come through, and only its reply been lost.
            let found = if tries > 0 { self.find(&[digest])?.pop().flatten() } else { None };
            found.map_or_else(|| self.create(&file, digest, &url), Ok)
        })?;
        Ok(keep(&desk.folder, number, &Record::of(&job, false))?)
    }

    /// Brings what a job has made into the folder of results; says what somebody should look at.
    fn fetch(&self, desk: &mut Desk<'_>, number: u32, job: &Job) -> Got<Option<JobEnd>> {
        let mut gone = None;
        // The output first: whatever is missing from what came is asked again.
        let parts = [("output", &job.output_file_id), ("errors", &job.error_file_id)];
        for (kind, file) in parts.into_iter().filter_map(|(kind, file)| Some((kind, file.as_deref()?))) {
            let to = desk.folder.join(RESULTS).join(format!("{}-{kind}.jsonl", stem(number)));
            if !self.again(|_| self.download(file, &to, desk.requests_max()))? {
                gone = Some(format!("its {kind} file is gone"));
            }
        }
        keep(&desk.folder, number, &Record::of(job, true))?;
        desk.is_over(number);
        let needs_a_look = matches!(job.status.as_str(), "failed" | "cancelled") || gone.is_some();
        Ok(needs_a_look.then(|| JobEnd {
            file: requests_name(number),
            job: job.id.clone(),
            status: job.status.clone(),
            errors: job.errors().into_iter().chain(gone).collect(),
        }))
    }

    /// Tries until something comes of it. Faults that every try would have are an end, and too many of the others.
    /// Being told to come back later is no try.
    fn again<T>(&self, mut act: impl FnMut(u32) -> Got<T>) -> Got<T> {
        let (mut tries, mut faults) = (0, 0);
        loop {
            let fault = match act(faults) {
                Err(Trouble::Fault(fault)) => fault,
                other => return other,
            };
            let what = redact::in_error(fault.what, self.endpoint.key.as_ref());
            faults += 1;
            tries += u32::from(fault.kind != FaultKind::Postponed);
            if matches!(fault.kind, FaultKind::Refused | FaultKind::Hopeless) {
                return Err(Trouble::Stopped(Stop::Hopeless { fault: what }));
            }
            if tries >= self.teacher.patience.max_attempts || faults >= FAULTS_MAX {
                return Err(Trouble::Stopped(Stop::NobodyThere { fault: what }));
            }
            let wait = WAIT.min(self.manners.poll) * (1 << (faults - 1).min(16));
            std::thread::sleep(fault.wait.unwrap_or(wait).min(WAIT_MAX));
        }
    }

    /// For each file the job that has it, if there is one.
    fn find(&self, digests: &[&str]) -> Got<Vec<Option<Job>>> {
        let mut found: Vec<Option<Job>> = vec![None; digests.len()];
        let mut after: Option<String> = None;
        for _ in 0..PAGES_MAX {
            let mut path = format!("batches?limit={PAGE}");
            if let Some(after) = &after {
                path.push_str(&format!("&after={}", encode_component(after)));
            }
            let page: Page = self.again(|_| self.json(&self.get(&path)?))?;
            let last = page.data.last().map(|job| job.id.clone());
            for job in page.data {
                let Some(i) = digests.iter().position(|digest| job.is_of(digest)) else { continue };
                if found[i].as_ref().is_none_or(|other| job.rank() < other.rank()) {
                    found[i] = Some(checked(job)?);
                }
            }
            if !page.has_more || last.is_none() || last == after {
                return Ok(found);
            }
            after = last;
        }
        let what = format!("the service lists more than {} jobs", PAGE * PAGES_MAX);
        Err(hopeless(what))
    }

    fn look(&self, job: &str) -> Got<Job> {
        let found: Job = self.json(&self.get(&format!("batches/{}", encode_component(job)))?)?;
        checked(found)
    }

    fn create(&self, file: &str, digest: &str, url: &str) -> Got<Job> {
        let body = json!({
            "input_file_id": file,
            "endpoint": url,
            "completion_window": WINDOW,
            "metadata": { RUN: self.manners.run, FILE: digest },
        });
        let address = self.endpoint.base.below("batches").map_err(|e| net(&e))?;
        let body = body.to_string().into_bytes();
        let request = Request::post(address, "application/json", &body);
        let response = self.client.send(&call::signed(self.endpoint, request)).map_err(|e| net(&e))?;
        checked(self.json(&whole(response)?)?)
    }

    /// Sends a file as a form of two fields, piece by piece.
    fn upload(&self, path: &Path, digest: &str) -> Got<String> {
        // A digest of the file does not stand in the file.
        let boundary = format!("stillroom-{}", &digest[..48]);
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let head = format!(
            "--{boundary}\r\ncontent-disposition: form-data; name=\"purpose\"\r\n\r\nbatch\r\n--{boundary}\r\n\
             content-disposition: form-data; name=\"file\"; filename=\"{name}\"\r\n\
             content-type: application/jsonl\r\n\r\n"
        );
        let tail = format!("\r\n--{boundary}--\r\n");
        let file = File::open(path).map_err(|e| failed("open", path, e))?;
        let length = file.metadata().map_err(|e| failed("read", path, e))?.len();
        let mut body = head.as_bytes().chain(file.take(length)).chain(tail.as_bytes());
        let address = self.endpoint.base.below("files").map_err(|e| net(&e))?;
        let kind = format!("multipart/form-data; boundary={boundary}");
        let request = call::signed(self.endpoint, Request::post(address, &kind, &[]));
        let bytes = length + (head.len() + tail.len()) as u64;
        let response = self.client.upload(&request, &mut body, bytes).map_err(|e| net(&e))?;
        let uploaded: Uploaded = self.json(&whole(response)?)?;
        named(&uploaded.id).map(str::to_owned)
    }

    /// Streams a file of results to `to`. `false` if the service has it no more.
    fn download(&self, file: &str, to: &Path, lines_max: u64) -> Got<bool> {
        let path = format!("files/{}/content", encode_component(named(file)?));
        let address = self.endpoint.base.below(&path).map_err(|e| net(&e))?;
        let request = call::signed(self.endpoint, Request::get(address)).stay();
        let response = self.client.send(&request).map_err(|e| net(&e))?;
        if matches!(response.status(), 404 | 410) {
            return Ok(false);
        }
        let mut response = success(response)?;
        let bytes_max = lines_max.saturating_mul(call::chat_bytes_max(&self.teacher.sampling));
        atomic_write_with(to, |out| {
            let mut piece = vec![0; 256 << 10];
            let mut bytes = 0;
            loop {
                let n = response.read(&mut piece).map_err(|e| net(&e))?;
                if n == 0 {
                    return Ok(true);
                }
                bytes += n as u64;
                if bytes > bytes_max {
                    let what = format!("a file of results is larger than {bytes_max} bytes");
                    return Err(hopeless(what));
                }
                out.write_all(&piece[..n]).map_err(|e| failed("write", to, e))?;
            }
        })
    }

    fn get(&self, path: &str) -> Got<Vec<u8>> {
        let address = self.endpoint.base.below(path).map_err(|e| net(&e))?;
        let request = call::signed(self.endpoint, Request::get(address)).stay();
        whole(self.client.send(&request).map_err(|e| net(&e))?)
    }

    fn json<T: for<'de> Deserialize<'de>>(&self, body: &[u8]) -> Got<T> {
        serde_json::from_slice(body).map_err(|error| {
            let place = self.endpoint.base.place();
            let what = format!("`{place}` answers something else than a job or a file: {}", kind_of(&error));
            Trouble::Fault(Fault::new(FaultKind::Again, what))
        })
    }
}

impl Record {
    fn of(job: &Job, fetched: bool) -> Record {
        Record { job: job.id.clone(), status: job.status.chars().take(NAME_BYTES_MAX).collect(), fetched }
    }
}

/// What is known of a file's job.
pub(crate) fn record(folder: &Path, number: u32) -> Result<Option<Record>, StoreError> {
    let path = folder.join(JOBS).join(format!("{}.json", stem(number)));
    match std::fs::read(&path) {
        Ok(bytes) => serde_json::from_slice(&bytes)
            .map(Some)
            .map_err(|error| StoreError::Damaged { path, reason: error.to_string() }),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(failed("read", &path, error)),
    }
}

fn keep(folder: &Path, number: u32, record: &Record) -> Result<(), StoreError> {
    let path = folder.join(JOBS).join(format!("{}.json", stem(number)));
    let mut text = serde_json::to_vec_pretty(record).expect("a record is plain data");
    text.push(b'\n');
    atomic_write(&path, &text)
}

/// How a job stands, in words.
fn told(number: u32, job: &Job) -> String {
    let counted = job.request_counts.unwrap_or_default();
    let done = counted.completed + counted.failed;
    format!("{} {} ({done} of {})", stem(number), job.status, counted.total)
}

fn checked(job: Job) -> Got<Job> {
    named(&job.id)?;
    Ok(job)
}

/// A name that a service gave, as far as one can be.
fn named(id: &str) -> Got<&str> {
    let is_name = !id.is_empty() && id.len() <= NAME_BYTES_MAX && id.bytes().all(|b| b.is_ascii_graphic());
    // Two dots would lead elsewhere.
    if is_name && id != "." && id != ".." {
        return Ok(id);
    }
    Err(hopeless("the service gives a name that is none"))
}

fn kind_of(error: &serde_json::Error) -> &'static str {
    if error.is_data() { "it has another shape" } else { "it is no JSON" }
}

fn hopeless(what: impl Into<String>) -> Trouble {
    Trouble::Fault(Fault::new(FaultKind::Hopeless, what))
}

fn net(error: &stillroom_net::NetError) -> Trouble {
    Trouble::Fault(of_net(error, None))
}

/// A redirect that was not followed is no success either.
fn success(response: Response) -> Got<Response> {
    if response.is_success() { Ok(response) } else { Err(Trouble::Fault(of_status(response))) }
}

fn whole(response: Response) -> Got<Vec<u8>> {
    success(response)?.read_to_vec(BODY_BYTES_MAX).map_err(|e| net(&e))
}
