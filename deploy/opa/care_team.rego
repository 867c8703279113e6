# Whose records: how far a role reaches, from one's own record to the whole population.
package envoy.authz

reaching_roles contains role if {
	some role in purposed_roles
	reaches(data.roles[role].reach)
}

reaches("own_record") if patients == {own_record}

# With SMART on FHIR, the record that the app was started for.
own_record := launched_for if {
	data.smart
} else := data.own_records[tenant][subject] if {
	data.tenants
} else := data.own_record[subject]

reaches("care_team") if {
	count(patients) > 0
	every patient in patients {
		subject in team(patient)
	}
}

# Any patient, but one at a time: a record by its id, or the records of patients who are named.
reaches("any_patient") if resource_id != ""

reaches("any_patient") if count(patients) > 0

reaches("population")
