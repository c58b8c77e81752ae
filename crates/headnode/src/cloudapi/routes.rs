//! Every endpoint in one table, and the way from a path to its row.

use std::{collections::HashMap, sync::LazyLock};

use http::Method;
use percent_encoding::percent_decode_str;

use super::{
    absent, account, audit,
    call::{Call, Outcome},
    changefeed, create, fabrics, fwrules, images, keys, machines, metadata, networks, nics, packages, services, stats,
    tags,
    throttle::Group,
};

/// Runs an endpoint.
pub(super) type Handler = fn(Call) -> Outcome;

/// One endpoint. `HEAD` is served by the row of `GET`.
pub(super) struct Route {
    pub(super) method: Method,
    /// Segments that start with `:` match anything.
    pub(super) path: &'static str,
    /// The contract's name of the operation.
    pub(super) name: &'static str,
    /// What it is throttled with.
    pub(super) group: Group,
    pub(super) run: Handler,
}

/// What a path leads to.
pub(super) enum Found {
    /// An endpoint and the values of its `:` segments, in order.
    Endpoint(&'static Route, Vec<String>),
    /// The path exists, with other methods.
    OtherMethods(Vec<&'static str>),
    /// Nothing.
    Nothing,
}

macro_rules! routes {
    ($($method:ident $path:literal $name:ident $group:ident $handler:path;)*) => {
        /// The table. Where two rows match a path, the earlier one wins.
        pub(super) static ROUTES: &[Route] = &[$(Route {
            method: Method::$method,
            path: $path,
            name: stringify!($name),
            group: Group::$group,
            run: |call| Box::pin($handler(call)),
        },)*];
    };
}

routes! {
    GET "/:account" GetAccount Account account::get;
    POST "/:account" UpdateAccount Account account::update;
    PUT "/:account" SetRoleTags Account absent::role_tags;
    GET "/:account/limits" GetAccountLimits Account account::limits;
    GET "/:account/keys" ListKeys Keys keys::list;
    POST "/:account/keys" CreateKey Keys keys::create;
    GET "/:account/keys/:key" GetKey Keys keys::get;
    DELETE "/:account/keys/:key" DeleteKey Keys keys::delete;
    GET "/:account/accesskeys" ListAccessKeys Keys absent::list;
    POST "/:account/accesskeys" CreateAccessKey Keys absent::unavailable;
    GET "/:account/accesskeys/:key" GetAccessKey Keys absent::one;
    DELETE "/:account/accesskeys/:key" DeleteAccessKey Keys absent::one;

    GET "/:account/config" GetConfig Config account::config;
    PUT "/:account/config" UpdateConfig Config account::set_config;
    GET "/:account/datacenters" ListDatacenters Datacenter services::datacenters;
    GET "/:account/datacenters/:datacenter" GetDatacenter Datacenter services::datacenter;
    GET "/:account/foreigndatacenters" ListForeignDatacenters Datacenter absent::delegated;
    POST "/:account/foreigndatacenters" AddForeignDatacenter Datacenter absent::delegated;
    GET "/:account/services" ListServices Services services::services;

    GET "/:account/packages" ListPackages Packages packages::list;
    GET "/:account/packages/:package" GetPackage Packages packages::get;

    GET "/:account/images" ListImages Datasets images::list;
    POST "/:account/images" CreateImageFromMachine Datasets absent::image_create;
    GET "/:account/images/:image" GetImage Datasets images::get;
    POST "/:account/images/:image" UpdateImage Datasets images::act;
    DELETE "/:account/images/:image" DeleteImage Datasets images::delete;

    GET "/:account/networks" ListNetworks Networks networks::list;
    GET "/:account/networks/:network" GetNetwork Networks networks::get;
    GET "/:account/networks/:network/ips" ListNetworkIPs Networks networks::ips;
    GET "/:account/networks/:network/ips/:ip" GetNetworkIP Networks networks::ip;
    PUT "/:account/networks/:network/ips/:ip" UpdateNetworkIP Networks networks::ip_update;
    GET "/:account/fabrics/default/vlans" ListFabricVLANs Networks fabrics::vlans;
    POST "/:account/fabrics/default/vlans" CreateFabricVLAN Networks fabrics::vlan_create;
    GET "/:account/fabrics/default/vlans/:vlan" GetFabricVLAN Networks fabrics::vlan;
    PUT "/:account/fabrics/default/vlans/:vlan" UpdateFabricVLAN Networks fabrics::vlan_update;
    DELETE "/:account/fabrics/default/vlans/:vlan" DeleteFabricVLAN Networks fabrics::vlan_delete;
    GET "/:account/fabrics/default/vlans/:vlan/networks" ListFabricNetworks Networks fabrics::networks;
    POST "/:account/fabrics/default/vlans/:vlan/networks" CreateFabricNetwork Networks fabrics::network_create;
    GET "/:account/fabrics/default/vlans/:vlan/networks/:network" GetFabricNetwork Networks fabrics::network;
    PUT "/:account/fabrics/default/vlans/:vlan/networks/:network" UpdateFabricNetwork Networks fabrics::network_update;
    DELETE "/:account/fabrics/default/vlans/:vlan/networks/:network" DeleteFabricNetwork Networks fabrics::network_delete;

    GET "/:account/machines" ListMachines Machines machines::list;
    POST "/:account/machines" CreateMachine Machines create::create;
    GET "/:account/machines/:machine" GetMachine Machines machines::get;
    POST "/:account/machines/:machine" UpdateMachine Machines machines::act;
    DELETE "/:account/machines/:machine" DeleteMachine Machines machines::delete;
    GET "/:account/machines/:machine/audit" MachineAudit Audit audit::list;
    GET "/:account/machines/:machine/nics" ListNics Nics nics::list;
    POST "/:account/machines/:machine/nics" AddNic Nics nics::add;
    GET "/:account/machines/:machine/nics/:mac" GetNic Nics nics::get;
    PUT "/:account/machines/:machine/nics/:mac" UpdateNic Nics nics::update;
    DELETE "/:account/machines/:machine/nics/:mac" RemoveNic Nics nics::remove;
    GET "/:account/machines/:machine/tags" ListMachineTags Machines tags::list;
    POST "/:account/machines/:machine/tags" AddMachineTags Machines tags::add;
    PUT "/:account/machines/:machine/tags" ReplaceMachineTags Machines tags::replace;
    DELETE "/:account/machines/:machine/tags" DeleteMachineTags Machines tags::delete_all;
    GET "/:account/machines/:machine/tags/:tag" GetMachineTag Machines tags::get;
    DELETE "/:account/machines/:machine/tags/:tag" DeleteMachineTag Machines tags::delete;
    GET "/:account/machines/:machine/metadata" ListMachineMetadata Machines metadata::list;
    POST "/:account/machines/:machine/metadata" UpdateMachineMetadata Machines metadata::add;
    DELETE "/:account/machines/:machine/metadata" DeleteAllMachineMetadata Machines metadata::delete_all;
    GET "/:account/machines/:machine/metadata/:key" GetMachineMetadata Machines metadata::get;
    DELETE "/:account/machines/:machine/metadata/:key" DeleteMachineMetadata Machines metadata::delete;
    GET "/:account/machines/:machine/fwrules" ListMachineFirewallRules Machines fwrules::of_machine;
    GET "/:account/machines/:machine/snapshots" ListMachineSnapshots Machines absent::machine_list;
    POST "/:account/machines/:machine/snapshots" CreateMachineSnapshot Machines absent::machine_unavailable;
    GET "/:account/machines/:machine/snapshots/:name" GetMachineSnapshot Machines absent::machine_one;
    POST "/:account/machines/:machine/snapshots/:name" StartMachineFromSnapshot Machines absent::machine_one;
    DELETE "/:account/machines/:machine/snapshots/:name" DeleteMachineSnapshot Machines absent::machine_one;
    GET "/:account/machines/:machine/disks" ListMachineDisks Machines absent::machine_list;
    POST "/:account/machines/:machine/disks" CreateMachineDisk Machines absent::machine_unavailable;
    GET "/:account/machines/:machine/disks/:disk" GetMachineDisk Machines absent::machine_one;
    POST "/:account/machines/:machine/disks/:disk" ResizeMachineDisk Machines absent::machine_one;
    DELETE "/:account/machines/:machine/disks/:disk" DeleteMachineDisk Machines absent::machine_one;
    GET "/:account/machines/:machine/migrate" MigrateMachineEstimate Machines absent::machine_unavailable;
    POST "/:account/machines/:machine/migrate" MigrateMachine Machines absent::machine_unavailable;
    GET "/:account/machines/:machine/vnc" ConnectMachineVNC Machines absent::vnc;
    GET "/:account/migrations" ListMigrations Machines absent::list;
    GET "/:account/migrations/:machine" GetMigration Machines absent::one;

    GET "/:account/fwrules" ListFirewallRules Machines fwrules::list;
    POST "/:account/fwrules" CreateFirewallRule Machines fwrules::create;
    GET "/:account/fwrules/:rule" GetFirewallRule Machines fwrules::get;
    POST "/:account/fwrules/:rule" UpdateFirewallRule Machines fwrules::update;
    DELETE "/:account/fwrules/:rule" DeleteFirewallRule Machines fwrules::delete;
    POST "/:account/fwrules/:rule/enable" EnableFirewallRule Machines fwrules::enable;
    POST "/:account/fwrules/:rule/disable" DisableFirewallRule Machines fwrules::disable;
    GET "/:account/fwrules/:rule/machines" ListFirewallRuleMachines Machines fwrules::machines;

    GET "/:account/users" ListUsers Users absent::list;
    POST "/:account/users" CreateUser Users absent::unavailable;
    GET "/:account/users/:user" GetUser Users absent::one;
    POST "/:account/users/:user" UpdateUser Users absent::one;
    DELETE "/:account/users/:user" DeleteUser Users absent::one;
    POST "/:account/users/:user/change_password" ChangeUserPassword Users absent::one;
    GET "/:account/users/:user/keys" ListUserKeys Users absent::one;
    POST "/:account/users/:user/keys" CreateUserKey Users absent::one;
    GET "/:account/users/:user/keys/:key" GetUserKey Users absent::one;
    DELETE "/:account/users/:user/keys/:key" DeleteUserKey Users absent::one;
    GET "/:account/roles" ListRoles Roles absent::list;
    POST "/:account/roles" CreateRole Roles absent::unavailable;
    GET "/:account/roles/:role" GetRole Roles absent::one;
    POST "/:account/roles/:role" UpdateRole Roles absent::one;
    DELETE "/:account/roles/:role" DeleteRole Roles absent::one;
    GET "/:account/policies" ListPolicies Policies absent::list;
    POST "/:account/policies" CreatePolicy Policies absent::unavailable;
    GET "/:account/policies/:policy" GetPolicy Policies absent::one;
    POST "/:account/policies/:policy" UpdatePolicy Policies absent::one;
    DELETE "/:account/policies/:policy" DeletePolicy Policies absent::one;

    GET "/:account/volumes" ListVolumes Volumes absent::list;
    POST "/:account/volumes" CreateVolume Volumes absent::unavailable;
    GET "/:account/volumes/:volume" GetVolume Volumes absent::volume;
    POST "/:account/volumes/:volume" UpdateVolume Volumes absent::volume;
    DELETE "/:account/volumes/:volume" DeleteVolume Volumes absent::volume;
    GET "/:account/volumesizes" ListVolumeSizes Volumes absent::list;
    GET "/:account/changefeed" Changefeed Changefeed changefeed::open;
    GET "/:account/stats" ListStats Machines stats::list;

    PUT "/:account/:resource" SetRoleTagsOfKind Account absent::role_tags;
    PUT "/:account/:resource/:id" SetRoleTagsOfOne Account absent::role_tags;
}

/// A row with the segments of its path.
type Split = (&'static Route, Vec<&'static str>);

/// Rows by their number of segments: few enough to compare one by one.
static BY_LENGTH: LazyLock<HashMap<usize, Vec<Split>>> = LazyLock::new(|| {
    let mut rows: HashMap<usize, Vec<_>> = HashMap::new();
    for route in ROUTES {
        let segments: Vec<&'static str> = route.path[1..].split('/').collect();
        rows.entry(segments.len()).or_default().push((route, segments));
    }
    rows
});

/// Finds the endpoint for a request's method and path. Trailing slashes do not matter.
pub(super) fn find(method: &Method, path: &str) -> Found {
    let method = if method == Method::HEAD { &Method::GET } else { method };
    let path = path.trim_matches('/');
    let length = path.split('/').count();
    let mut others = Vec::new();
    for (route, segments) in BY_LENGTH.get(&length).map_or(&[][..], Vec::as_slice) {
        let same = |(wanted, got): (&&str, &str)| wanted.starts_with(':') || **wanted == *got;
        if !segments.iter().zip(path.split('/')).all(same) {
            continue;
        }
        if route.method != *method {
            // Rows for whatever there may be say nothing about what there is.
            if !route.path.starts_with("/:account/:resource") {
                others.push(route.method.as_str());
            }
            continue;
        }
        let mut values = Vec::new();
        for (_, got) in segments.iter().zip(path.split('/')).filter(|(wanted, _)| wanted.starts_with(':')) {
            match percent_decode_str(got).decode_utf8() {
                Ok(value) if !value.is_empty() => values.push(value.into_owned()),
                _ => return Found::Nothing,
            }
        }
        return Found::Endpoint(route, values);
    }
    if others.contains(&"GET") {
        others.push("HEAD");
    }
    if others.is_empty() { Found::Nothing } else { Found::OtherMethods(others) }
}
