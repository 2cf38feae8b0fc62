//! What a workload writes and reads: logs, attach, exec, statistics.

use axum::Router;
use axum::extract::ws::WebSocketUpgrade;
use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use bytes::Bytes;
use http::{HeaderMap, StatusCode, header};
use insula_base::chain;
use insula_engine::filters::parse_moment;
use insula_engine::logs::{LogLine, LogOptions, LogStream, Stream};
use insula_engine::{AttachOptions, AttachedStream};
use insula_models::{ApiVersion, ExecCreateRequest, ExecStartRequest};

use crate::error::ApiError;
use crate::hijack::{self, Framing, Taken, Takeover};
use crate::request::{Json, Params, Path, read_optional};
use crate::routes::containers::size;
use crate::routes::{Answer, Api, Version, json, json_with};
use crate::{stream, web_socket};

pub(super) fn routes() -> Router<Api> {
    Router::new()
        .route("/containers/{id}/logs", get(logs))
        .route("/containers/{id}/attach", post(attach))
        .route("/containers/{id}/attach/ws", get(attach_web_socket))
        .route("/containers/{id}/exec", post(create_exec))
        .route("/exec/{id}/start", post(start_exec))
        .route("/exec/{id}/resize", post(resize_exec))
        .route("/exec/{id}/json", get(inspect_exec))
}

async fn logs(
    State(api): State<Api>,
    Path(id): Path<String>,
    Version(version): Version,
    headers: HeaderMap,
    params: Params,
) -> Answer {
    let (stdout, stderr) = (params.flag("stdout"), params.flag("stderr"));
    if !(stdout || stderr) {
        return Err(ApiError::invalid("Bad parameters: you must choose at least one stream"));
    }
    let moment = |name: &str| {
        // Zero is how clients write that they want none.
        params.text(name).filter(|text| *text != "0").map(parse_moment).transpose()
    };
    let options = LogOptions {
        stdout,
        stderr,
        since: moment("since")?,
        until: moment("until")?,
        // What is no number means all, `all` being one such.
        tail: params.text("tail").and_then(|tail| tail.parse().ok()),
        follow: params.flag("follow"),
    };
    let follow = options.follow;
    let source = api.engine.log_source(&id)?;
    let framing = Framing::asked_for(source.tty, &headers);
    let log = api.engine.open_log(source, options).await?;
    let show = Show { framing, timestamps: params.flag("timestamps"), details: params.flag("details") };
    let next = move |log| next_lines(log, show);
    let body =
        if follow { stream::followed(log, next, api.engine.until_end()) } else { stream::chunks(log, next) };
    let mut response = Response::new(body);
    response.headers_mut().insert(header::CONTENT_TYPE, framing.content_type(version));
    Ok(response)
}

/// How lines are written.
#[derive(Clone, Copy)]
struct Show {
    framing: Framing,
    timestamps: bool,
    details: bool,
}

async fn next_lines(mut log: LogStream, show: Show) -> Option<(Bytes, LogStream)> {
    let mut bytes = Vec::new();
    match log.next().await? {
        Ok(lines) => lines.iter().for_each(|line| write_line(&mut bytes, line, show)),
        Err(error) => bytes = hijack::failure(show.framing, &format!("reading the log: {error}")),
    }
    Some((bytes.into(), log))
}

fn write_line(out: &mut Vec<u8>, line: &LogLine, show: Show) {
    // Nine digits always, as Docker prints them.
    let mut before = if show.timestamps { format!("{:.9} ", line.time) } else { String::new() };
    if show.details {
        let pairs = line.attributes.iter().map(|(name, value)| format!("{}={}", escape(name), escape(value)));
        before.push_str(&pairs.collect::<Vec<_>>().join(","));
        before.push(' ');
    }
    if show.framing == Framing::Multiplexed {
        let number = match line.stream {
            Stream::Stdout => 1,
            Stream::Stderr => 2,
        };
        let length = u32::try_from(before.len() + line.bytes.len()).unwrap_or(u32::MAX);
        out.extend_from_slice(&[number, 0, 0, 0]);
        out.extend_from_slice(&length.to_be_bytes());
    }
    out.extend_from_slice(before.as_bytes());
    out.extend_from_slice(&line.bytes);
}

/// As Go's `url.QueryEscape`.
fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => {
                escaped.push(char::from(byte))
            }
            b' ' => escaped.push('+'),
            _ => escaped.push_str(&format!("%{byte:02X}")),
        }
    }
    escaped
}

async fn attach(
    State(api): State<Api>,
    Path(id): Path<String>,
    Version(version): Version,
    params: Params,
    request: Request,
) -> Answer {
    let options = attach_options(&params);
    let target = api.engine.attach_target(&id).await?;
    let framing = Framing::of_tty(target.tty);
    // A start that follows the answer waits until the connection has arrived.
    let pending = api.attaching.begin([id, target.id.to_string()]);
    let takeover = Takeover::of(request);
    takeover.answer(framing, version, move |taken| async move {
        let told = taken.descriptor.try_clone();
        if options.logs {
            taken.head_is_read().await;
        }
        let result = api.engine.attach(target.id.as_str(), options, attached(taken)).await;
        drop(pending);
        if let Err(error) = result {
            hijack::tell(told, framing, &chain(&error)).await;
        }
    })
}

fn attach_options(params: &Params) -> AttachOptions {
    AttachOptions {
        stdin: params.flag("stdin"),
        stdout: params.flag("stdout"),
        stderr: params.flag("stderr"),
        logs: params.flag("logs"),
        stream: params.flag("stream"),
        detach_keys: params.text("detachKeys").map(str::to_owned),
    }
}

async fn attach_web_socket(
    State(api): State<Api>,
    Path(id): Path<String>,
    Version(version): Version,
    params: Params,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Answer {
    let upgrade = upgrade.map_err(|rejection| ApiError::invalid(rejection.body_text()))?;
    let mut options = attach_options(&params);
    if version < ApiVersion::v1(42) {
        (options.stdin, options.stdout, options.stderr) = (true, true, true);
    }
    let target = api.engine.attach_target(&id).await?;
    let framing = Framing::of_tty(target.tty);
    let pending = api.attaching.begin([id, target.id.to_string()]);
    let (ours, theirs) = web_socket::pair()?;
    let mode = web_socket::Mode { framing, text: version < ApiVersion::v1(28) };
    Ok(upgrade.max_message_size(web_socket::MAX_MESSAGE).on_upgrade(async move |socket| {
        let stream = AttachedStream { descriptor: theirs, already_read: Vec::new() };
        let attached = api.engine.attach(target.id.as_str(), options, stream).await;
        drop(pending);
        web_socket::relay(socket, ours, mode, attached.err().map(|error| chain(&error))).await;
    }))
}

async fn create_exec(
    State(api): State<Api>,
    Path(id): Path<String>,
    Json(request): Json<ExecCreateRequest>,
) -> Answer {
    json_with(StatusCode::CREATED, &api.engine.create_exec(&id, request).await?)
}

async fn start_exec(
    State(api): State<Api>,
    Path(id): Path<String>,
    Version(version): Version,
    mut request: Request,
) -> Answer {
    let body = std::mem::take(request.body_mut());
    let start: ExecStartRequest = read_optional(request.headers(), body).await?;
    if start.detach {
        api.engine.start_exec(&id, start, None).await?;
        return Ok(StatusCode::OK.into_response());
    }
    let framing = Framing::of_tty(api.engine.exec_target(&id).await?.tty);
    Takeover::of(request).answer(framing, version, move |taken| async move {
        let told = taken.descriptor.try_clone();
        taken.head_is_read().await;
        if let Err(error) = api.engine.start_exec(&id, start, Some(attached(taken))).await {
            hijack::tell(told, framing, &chain(&error)).await;
        }
    })
}

fn attached(taken: Taken) -> AttachedStream {
    AttachedStream { descriptor: taken.descriptor, already_read: taken.already_read }
}

async fn resize_exec(State(api): State<Api>, Path(id): Path<String>, params: Params) -> Answer {
    let (rows, columns) = size(&params)?;
    api.engine.resize_exec(&id, rows, columns).await?;
    Ok(StatusCode::OK.into_response())
}

async fn inspect_exec(State(api): State<Api>, Path(id): Path<String>) -> Answer {
    json(&api.engine.inspect_exec(&id).await?)
}
