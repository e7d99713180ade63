//! Policy files in docker's form: the specification's, with rules that hold for some capabilities, machines and kernels.

use crate::capabilities;
use serde::Deserialize;
use serde_json::{Value, json};

/// What of docker's form goes beyond the specification.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Profile {
    default_action: String,
    default_errno_ret: Option<u32>,
    architectures: Option<Vec<String>>,
    arch_map: Vec<Family>,
    flags: Option<Vec<String>>,
    listener_path: Option<String>,
    syscalls: Vec<Rule>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Family {
    architecture: String,
    #[serde(default)]
    sub_architectures: Option<Vec<String>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Rule {
    name: Option<String>,
    names: Option<Vec<String>>,
    action: String,
    errno_ret: Option<u32>,
    args: Option<Value>,
    includes: Condition,
    excludes: Condition,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Condition {
    caps: Vec<String>,
    arches: Vec<String>,
    min_kernel: Option<String>,
}

/// Reads a policy for a process with these capabilities, and gives it in the words of the specification.
///
/// # Errors
/// What is not understood, in a sentence.
pub fn profile(text: &str, capabilities: u64) -> Result<String, String> {
    let profile: Profile =
        serde_json::from_str(text).map_err(|error| format!("the policy is not understood: {error}"))?;
    let host = Host::of(capabilities);
    let rules = profile.syscalls.iter().filter(|rule| host.includes(&rule.includes) && !host.excludes(&rule.excludes));
    let mut described = json!({
        "defaultAction": profile.default_action,
        "architectures": architectures(&profile),
        "flags": profile.flags.clone().unwrap_or_default(),
        "syscalls": rules.map(written).collect::<Vec<_>>(),
    });
    if let Some(errno) = profile.default_errno_ret {
        described["defaultErrnoRet"] = json!(errno);
    }
    if let Some(path) = &profile.listener_path {
        described["listenerPath"] = json!(path);
    }
    let read =
        serde_json::from_value(described.clone()).map_err(|error| format!("the policy is not understood: {error}"))?;
    // Found now rather than when the container starts.
    super::Policy::read(&read).and_then(|policy| policy.compile()).map_err(|failure| match failure {
        crate::error::Failure::Refused(why) => why,
        other => crate::SandboxError::from(other).to_string(),
    })?;
    Ok(described.to_string())
}

fn written(rule: &Rule) -> Value {
    let names = rule.names.iter().flatten().chain(&rule.name).collect::<Vec<_>>();
    let mut written = json!({ "names": names, "action": rule.action });
    if let Some(errno) = rule.errno_ret {
        written["errnoRet"] = json!(errno);
    }
    if let Some(args) = rule.args.as_ref().filter(|args| !args.is_null()) {
        written["args"] = args.clone();
    }
    written
}

fn architectures(profile: &Profile) -> Vec<String> {
    let own = if cfg!(target_arch = "x86_64") { "SCMP_ARCH_X86_64" } else { "SCMP_ARCH_AARCH64" };
    let family = profile.arch_map.iter().find(|family| family.architecture == own);
    match (family, &profile.architectures) {
        (Some(family), _) => {
            let below = family.sub_architectures.iter().flatten().cloned();
            std::iter::once(family.architecture.clone()).chain(below).collect()
        }
        (None, Some(listed)) => listed.clone(),
        (None, None) => vec![own.to_owned()],
    }
}

/// What conditions are about.
struct Host {
    capabilities: Vec<String>,
    architecture: &'static str,
    kernel: (u32, u32),
}

impl Host {
    fn of(capabilities: u64) -> Host {
        let release = rustix::system::uname().release().to_string_lossy().into_owned();
        Host {
            capabilities: capabilities::names(capabilities),
            architecture: if cfg!(target_arch = "x86_64") { "amd64" } else { "arm64" },
            kernel: version(&release),
        }
    }

    fn has(&self, capability: &String) -> bool {
        self.capabilities.contains(capability)
    }

    fn includes(&self, condition: &Condition) -> bool {
        condition.caps.iter().all(|capability| self.has(capability))
            && (condition.arches.is_empty() || condition.arches.iter().any(|arch| arch == self.architecture))
            && condition.min_kernel.as_ref().is_none_or(|least| self.kernel >= version(least))
    }

    fn excludes(&self, condition: &Condition) -> bool {
        condition.caps.iter().any(|capability| self.has(capability))
            || condition.arches.iter().any(|arch| arch == self.architecture)
            || condition.min_kernel.as_ref().is_some_and(|least| self.kernel >= version(least))
    }
}

/// The first two numbers of a kernel's version.
fn version(text: &str) -> (u32, u32) {
    let mut numbers = text.split(|c: char| !c.is_ascii_digit()).map(|part| part.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_hold_where_their_conditions_do() {
        let text = r#"{ "defaultAction": "SCMP_ACT_ERRNO",
            "archMap": [ { "architecture": "SCMP_ARCH_X86_64", "subArchitectures": ["SCMP_ARCH_X86"] } ],
            "syscalls": [
                { "names": ["read"], "action": "SCMP_ACT_ALLOW", "args": null },
                { "name": "mount", "action": "SCMP_ACT_ALLOW", "includes": { "caps": ["CAP_SYS_ADMIN"] } },
                { "names": ["ptrace"], "action": "SCMP_ACT_ALLOW", "includes": { "minKernel": "4.8" } },
                { "names": ["bpf"], "action": "SCMP_ACT_ALLOW", "includes": { "minKernel": "999.0" } },
                { "names": ["socket"], "action": "SCMP_ACT_ALLOW", "excludes": { "caps": ["CAP_CHOWN"] } }
            ] }"#;
        let names = |capabilities| {
            let described: Value = serde_json::from_str(&profile(text, capabilities).unwrap()).unwrap();
            let rules = described["syscalls"].as_array().unwrap().clone();
            rules.iter().map(|rule| rule["names"][0].as_str().unwrap().to_owned()).collect::<Vec<_>>()
        };
        assert_eq!(names(1), ["read", "ptrace"]);
        assert_eq!(names(1 << 21), ["read", "mount", "ptrace", "socket"]);
    }

    #[test]
    fn policies_that_are_none_are_refused() {
        for text in ["", "{}", r#"{ "defaultAction": "NO" }"#, r#"{ "defaultAction": "SCMP_ACT_NOTIFY" }"#] {
            assert!(profile(text, 0).is_err(), "{text}");
        }
    }

    #[test]
    fn versions_of_kernels_are_compared_as_numbers() {
        assert!(version("6.18.44-x") > version("6.9") && version("4.8") == (4, 8));
    }
}
