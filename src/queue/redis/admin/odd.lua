-- odd(key's name, cursor, n) -> {next cursor ('0': all was looked at), looked at, {member, value, what is wrong, how it is mended}...}
local name, cursor, n = ARGV[1], ARGV[2], assert(tonumber(ARGV[3]))
local key, found = assert(key_of[name]), {}
if name == 'id' then
  local last = redis.call('GET', key)
  local wrong = last and judge(name, '', last)
  if wrong then found[1] = {'', string.sub(last, 1, 100), wrong, 'aside'} end
  return {'0', 1, found}
end
local page
if is_hash[name] then page = redis.call('HSCAN', key, cursor, 'COUNT', n) else page = redis.call('ZSCAN', key, cursor, 'COUNT', n) end
local entries = page[2]
for i = 1, #entries, 2 do
  local wrong, remedy = judge(name, entries[i], entries[i + 1])
  if wrong then found[#found + 1] = {entries[i], string.sub(entries[i + 1], 1, 100), wrong, remedy or 'aside'} end
end
return {page[1], #entries / 2, found}
