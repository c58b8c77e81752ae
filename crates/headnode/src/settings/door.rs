//! What tenants meet at the CloudAPI door.

use model::time::Timestamp;
use serde::{Deserialize, Serialize};

use crate::cloudapi::{Maintenance, Options, Rate};

/// Longest maintenance message, bytes; it travels in every refusal.
const MESSAGE_MAX: usize = 512;

/// How many requests one account may send, and whether changes are refused for now.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Door {
    /// Requests one account may send at once, for each group of endpoints; 0 does not throttle.
    pub throttle_burst: u32,
    /// Requests a second one account may send in the long run, for each group of endpoints; 0 does not throttle.
    pub throttle_rate: f64,
    /// What tenants are told when they want to change something; empty lets them.
    pub maintenance: String,
    /// When that is expected to end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub maintenance_until: Option<Timestamp>,
}

impl Default for Door {
    fn default() -> Self {
        let Rate { burst, per_second } = Rate::default();
        Self { throttle_burst: burst, throttle_rate: per_second, maintenance: String::new(), maintenance_until: None }
    }
}

impl Door {
    pub(super) fn check(&self) -> Result<(), String> {
        if !self.throttle_rate.is_finite() || self.throttle_rate < 0.0 {
            return Err(format!("cloudapi.throttle_rate must be 0 or more, not {}", self.throttle_rate));
        }
        if self.maintenance.len() > MESSAGE_MAX {
            return Err(format!("cloudapi.maintenance may have {MESSAGE_MAX} bytes at most"));
        }
        if self.maintenance_until.is_some() && self.maintenance.is_empty() {
            return Err("cloudapi.maintenance_until needs cloudapi.maintenance, the text tenants are told".into());
        }
        Ok(())
    }

    /// Puts these settings into the options of the API.
    pub(crate) fn apply(&self, options: &mut Options) {
        let throttles = self.throttle_burst > 0 && self.throttle_rate > 0.0;
        options.throttle = throttles.then_some(Rate { burst: self.throttle_burst, per_second: self.throttle_rate });
        options.maintenance = (!self.maintenance.is_empty()).then(|| Maintenance {
            message: self.maintenance.clone(),
            until: self.maintenance_until.map(|until| until.0.div_euclid(1_000)),
        });
    }
}

#[cfg(test)]
mod tests {
    use crate::{
        cloudapi::{Options, Rate},
        settings::Settings,
    };

    fn options(from: &str, to: &str) -> Result<Options, String> {
        let text = Settings::generate(None).unwrap();
        assert!(text.contains(from), "the template says {from}");
        let settings = Settings::parse(&text.replace(from, to))?;
        let mut options = Options::new("dc-1", "https://127.0.0.1");
        settings.cloudapi.apply(&mut options);
        Ok(options)
    }

    #[test]
    fn the_door_follows_the_file() {
        assert_eq!(options("throttle_rate = 50", "throttle_rate = 0").unwrap().throttle, None);
        assert_eq!(options("throttle_burst = 200", "throttle_burst = 0").unwrap().throttle, None);
        let slow = options("throttle_rate = 50", "throttle_rate = 0.5").unwrap().throttle;
        assert_eq!(slow, Some(Rate { burst: 200, per_second: 0.5 }));

        let window = "maintenance = \"back at noon\"\nmaintenance_until = \"2026-11-25T12:00:00Z\"";
        let window = options("maintenance = \"\"", window).unwrap().maintenance.unwrap();
        assert_eq!((&*window.message, window.until), ("back at noon", Some(1_795_608_000)));
    }

    #[test]
    fn the_file_may_be_silent_and_must_not_be_wrong() {
        let text = Settings::generate(None).unwrap();
        let before = text.find("[cloudapi]").unwrap();
        let after = text.find("[kernel]").unwrap();
        let silent = Settings::parse(&format!("{}{}", &text[..before], &text[after..])).unwrap();
        assert_eq!(silent.cloudapi, Settings::parse(&text).unwrap().cloudapi);

        assert!(options("throttle_rate = 50", "throttle_rate = -1").unwrap_err().contains("cloudapi.throttle_rate"));
        let until = "maintenance_until = \"2026-11-25T12:00:00Z\"";
        assert!(options("maintenance = \"\"", until).unwrap_err().contains("cloudapi.maintenance"));
    }
}
