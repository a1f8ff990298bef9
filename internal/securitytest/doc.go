// Package securitytest proves what natty promises about security: which permissions each
// call needs, what is said when a login, a certificate or a permission is refused, and
// that no secret is ever shown. It holds tests only, which use natty through its public
// API. docs/permissions.md is compared with the table of the tests here:
//
//	go test ./internal/securitytest
//	go test ./internal/securitytest -run DocumentHas -update    writes the table there anew
package securitytest
