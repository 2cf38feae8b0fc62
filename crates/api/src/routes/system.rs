//! The engine itself: version, information, events, disk use.

use axum::Router;
use axum::extract::State;
use axum::routing::get;
use insula_engine::events::{EventFilter, EventStream};
use insula_engine::filters::parse_moment;
use insula_engine::system::ApiRange;

use insula_models::ApiVersion;

use crate::request::Params;
use crate::routes::{Answer, Api, Version, json, shaped};
use crate::stream;

pub(super) fn routes() -> Router<Api> {
    Router::new()
        .route("/info", get(info))
        .route("/version", get(version))
        .route("/events", get(events))
        .route("/system/df", get(disk_use))
        .route("/plugins", get(plugins))
}

async fn info(State(api): State<Api>, Version(version): Version) -> Answer {
    shaped(version, &api.engine.info().await?)
}

async fn version(State(api): State<Api>, Version(version): Version) -> Answer {
    shaped(
        version,
        &api.engine.version(&ApiRange { min: ApiVersion::MIN.to_string(), max: ApiVersion::MAX.to_string() }),
    )
}

async fn events(State(api): State<Api>, params: Params) -> Answer {
    let moment = |name: &str| params.text(name).map(parse_moment).transpose();
    let (since, until) = (moment("since")?, moment("until")?);
    let filter = EventFilter::new(params.filters()?)?;
    let events = api.engine.events().subscribe(filter, since, until);
    let next = |mut events: EventStream| async move {
        let event = events.next().await?;
        Some((stream::line(&*event), events))
    };
    let body = stream::followed(events, next, api.engine.until_end());
    Ok(stream::json(body))
}

async fn disk_use(State(api): State<Api>, Version(version): Version) -> Answer {
    shaped(version, &api.engine.disk_use().await?)
}

/// Drivers are built in: there is none to list.
async fn plugins() -> Answer {
    json::<[(); 0]>(&[])
}
