//! `neso cloudapi`: any endpoint of CloudAPI, signed, with its answer as it is; what `triton cloudapi` does.

use cloudapi::client::Method;
use serde_json::Value;

use super::Tenant;
use crate::{
    answer,
    failure::{Failure, Outcome},
};

/// What to ask.
#[derive(Debug, clap::Args)]
pub(crate) struct Call {
    /// Profile; by default the environment (TRITON_URL …), then triton's current one.
    #[arg(short, long, env = "TRITON_PROFILE")]
    profile: Option<String>,
    /// Method.
    #[arg(short = 'X', long, default_value = "GET")]
    method: Method,
    /// JSON to send.
    #[arg(short, long)]
    data: Option<String>,
    /// Path, with a query if need be; `/my` at its beginning stands for the account.
    endpoint: String,
}

/// Runs it.
pub(crate) async fn run(call: Call) -> Outcome {
    let body = call.data.as_deref().map(serde_json::from_str::<Value>).transpose();
    let body = body.map_err(|error| Failure::new(format!("--data is not JSON: {error}")))?;
    if !call.endpoint.starts_with('/') {
        let why = format!("`{}` does not begin with `/`", call.endpoint);
        return Err(Failure::new(why).mend("name a path such as /my/machines"));
    }
    let tenant = Tenant::of_profile(call.profile.as_deref()).await?;
    match tenant.client.call(call.method, &call.endpoint, body.as_ref()).await? {
        Value::Null => Ok(()),
        said => Ok(answer::print(serde_json::to_string_pretty(&said)?)?),
    }
}
