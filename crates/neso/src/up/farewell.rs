//! The last words of `neso up`: exactly what to type next.

use headnode::Settings;

use super::setup::Ready;
use crate::{context::Place, install};

/// Prints them.
#[expect(clippy::print_stdout, reason = "a command's answer goes to standard output")]
pub(super) fn print(place: &Place, settings: &Settings, ready: &Ready) {
    println!("{}", text(place, settings, ready));
}

/// How this program is called from a shell: by its name when the path finds it, else by where it lies.
fn program() -> String {
    let Ok(here) = std::env::current_exe() else { return "neso".to_owned() };
    let path = std::env::var_os("PATH").unwrap_or_default();
    let first = std::env::split_paths(&path).map(|directory| directory.join("neso")).find(|file| file.is_file());
    match first.and_then(|file| file.canonicalize().ok()) {
        Some(found) if found == here => "neso".to_owned(),
        _ => here.display().to_string(),
    }
}

fn text(place: &Place, settings: &Settings, ready: &Ready) -> String {
    let key = ready.tenant_key.path.display();
    let program = match install::is_installed(place) {
        true => "neso".to_owned(),
        false => program(),
    };
    let neso = match (&place.config, &place.root) {
        (Some(config), _) => format!("{program} --config {}", config.display()),
        (None, Some(root)) => format!("{program} --root {}", root.display()),
        (None, None) => program,
    };
    let mut text = format!(
        "\nThe datacenter {} is up.\n\n\
         As a tenant, with the triton command (npm install -g triton; Debian has npm) or `neso instance`:\n\n\
         \x20 export TRITON_URL={}\n  export TRITON_ACCOUNT={}\n  export TRITON_KEY_ID={}\n  export TRITON_TLS_INSECURE=1\n\
         \x20 eval \"$(ssh-agent)\" && ssh-add {key}\n\n\
         \x20 triton inst list\n",
        settings.datacenter.name,
        settings.cloudapi_url(),
        settings.first_run.tenant,
        ready.key.fingerprint_md5,
    );
    let image = match settings.first_run.instance_image.as_str() {
        "" => settings.first_run.images.first().map_or("IMAGE", String::as_str),
        image => image,
    };
    let package = &settings.first_run.instance_package;
    text.push_str(&format!("  triton create -w --name web {image} {package}\n"));
    if let Some(ip) = ready.instance.as_ref().and_then(|instance| instance.ip.as_deref()) {
        text.push_str(&format!("\nLog in to the first instance:\n\n  ssh -i {key} root@{ip}\n"));
    }
    text.push_str(&format!(
        "\nAs the operator:\n\n  {neso} adm info\n  {neso} doctor\n  {neso} manual\n  {neso} down\n"
    ));
    text
}
